"""The ServerApp: its own FedAvg, whose model the fleet takes over, and the erasure."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from dlfd_fleet.federation import FederatedUnlearning
from quickstart.task import Net, task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's configuration names: train, erase, or references."""
    config = context.run_config
    unlearning = FederatedUnlearning(task=task, started_by=config["by"], reason=config["reason"])
    if context.run_config["job"] == "erase":
        result = unlearning.start(grid)
    elif context.run_config["job"] == "references":
        result = unlearning.make_references(grid)
    else:
        torch.manual_seed(0)  # the same first weights in each run
        begin = unlearning.arrays() or ArrayRecord(Net().state_dict())
        strategy = FedAvg(fraction_evaluate=0.0)
        trained = strategy.start(grid, begin, num_rounds=int(context.run_config["rounds"]))
        result = unlearning.adopt(grid, trained.arrays)
    print(result.sentence())
    result.raise_for_verdict()  # after FAIL the run fails, too
