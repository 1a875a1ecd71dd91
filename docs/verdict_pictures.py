"""Draw the pictures of docs/explanation/verdicts.md: ``python docs/verdict_pictures.py``.

The verdicts are the product's own, of small sums that are made up: no model is behind them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from pictures import keep

from dlfd_fleet.audit import Estimate, MemberShare, Outcome, Scores, Verdict, judge, left_by_references
from dlfd_fleet.settings import Settings

PEOPLE, IMAGES, MEMBERS = 20, 160, 0.7
COLOURS = {Outcome.PASS: "#1d6b42", Outcome.FAIL: "#a32018", Outcome.INCONCLUSIVE: "#8a5a00"}
CASES = {
    "pass": {"left": 0.05, "error": 0.2},
    "fail-remembered": {"left": 0.95, "error": 0.2},
    "fail-overdone": {"left": -1.0, "error": 0.2},
    "fail-utility": {"left": 0.05, "error": 0.2, "test": 0.70},
    "inconclusive": {"left": 0.2, "error": 0.45},
}
"""How much is left of the forgotten people, its standard error, and the accuracy on people never seen."""


def scores(left: float, error: float, test: float = 0.9) -> Scores:
    """Make scores up of a model of which references say that so much is left."""
    share = MemberShare(
        value=left * MEMBERS,
        standard_error=error * MEMBERS,
        retained=MEMBERS,
        retained_error=0.05,
        level_error=0.05 * MEMBERS,
        people=PEOPLE,
        images=IMAGES,
        noise=1.0,
        gap=1.0 / (error * MEMBERS) ** 2,
    )
    said = {name: around(value, 0.02) for name, value in {"balanced_accuracy": test, "mia_auc": 0.5}.items()}
    return Scores(
        test_accuracy=around(test, 0.02),
        retain_accuracy=around(0.97, 0.01),
        forget_accuracy=around(0.9, 0.02),
        mia_accuracy=around(0.5, 0.02),
        forgetting_score=0.0,
        nomus=0.9,
        control_auc=around(0.5, 0.02),
        majority_baseline=0.5,
        unseen_classes=2,
        forget_images=IMAGES,
        unseen_images=IMAGES,
        member_share=share,
        **said,
    )


def around(value: float, error: float) -> Estimate:
    """Return an estimate with its bounds."""
    return Estimate(value=value, low=value - 2 * error, high=min(1.0, value + 2 * error), standard_error=error)


def judged(name: str) -> tuple[Scores, Verdict]:
    """Return the scores of a case, and the product's verdict of it."""
    model = scores(**CASES[name])
    return model, judge(scores(1.0, 0.2), model, Settings().audit)


def draw(name: str) -> Figure:
    """Draw how much is left, with its bounds, beside what a verdict asks for."""
    model, verdict = judged(name)
    left = left_by_references(scores(1.0, 0.2), model)
    figure = Figure(figsize=(7.0, 1.6), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-0.5, 0.5, color="#1f6fb4", alpha=0.13, lw=0)
    for place, what in ((0.0, "never seen"), (1.0, "as a member")):
        axis.axvline(place, color="#7a8288", ls=":", lw=1)
        axis.text(place, 0.8, what, ha="center", fontsize=8, color="#5c6670")
    colour = COLOURS[verdict.outcome]
    axis.plot([left.low, left.high], [0, 0], color=colour, lw=3)
    axis.plot([left.value], [0], "o", color=colour, ms=9)
    drop = f", test accuracy {model.test_accuracy.value:.2f} (it was 0.90)" if "test" in CASES[name] else ""
    axis.set_title(f"{verdict.outcome}: {left} is left{drop}", fontsize=10, loc="left", color=colour)
    axis.set(xlim=(-1.6, 1.6), ylim=(-0.7, 1.2), yticks=[], xticks=[-1.5, -1, -0.5, 0, 0.5, 1, 1.5])
    axis.set_xticklabels([f"{tick:.0%}" for tick in (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)], fontsize=8)
    axis.spines[["top", "left", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES:
            picture = Path(folder) / f"{name}.png"
            draw(name).savefig(picture, dpi=100)
            keep(picture, f"verdict-{name}")


if __name__ == "__main__":
    main()
