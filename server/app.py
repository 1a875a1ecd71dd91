"""The ServerApp of the fleet: it runs the job that the run's configuration names."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation import FederatedUnlearning
from dlfd_fleet.federation.app_errors import log_errors_in_words

log_errors_in_words()
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's configuration names: ``job = "train"``, ``"erase"``, ``"references"`` or ``"plan"``.

    ``fresh = true`` lets a training job begin with fresh weights in place of the champion's; ``if_due = true`` lets an
    erasure begin only if one is due; ``by = "NAME"`` says who starts the job, and ``reason = "…"`` why.
    """
    kind = str(context.run_config.get("job", "erase"))
    if kind not in ("train", "erase", "references", "plan"):
        raise JobError(f"job = '{kind}' is no kind of job; use 'train', 'erase', 'references' or 'plan'.")
    by, reason = (str(context.run_config.get(key, "")) for key in ("by", "reason"))
    unlearning = FederatedUnlearning(started_by=by, reason=reason)
    if kind == "train":
        unlearning.train(grid, start="fresh" if context.run_config.get("fresh", False) else None)
    elif kind == "references":
        unlearning.make_references(grid)
    elif kind == "plan":
        unlearning.plan(grid)
    elif not context.run_config.get("if_due", False) or _is_due(unlearning, grid):
        unlearning.start(grid).raise_for_verdict()


def _is_due(unlearning: FederatedUnlearning, grid: Grid) -> bool:
    due = unlearning.whether_due(grid)
    unlearning.progress.say(due.why)
    return due.is_due
