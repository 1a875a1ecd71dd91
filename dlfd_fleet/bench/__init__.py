"""The comparison of DLFD with every peer and with retraining: one table, one audit, one machine."""

from dlfd_fleet.bench.command import bench_command, federated_command, log_to_mlflow
from dlfd_fleet.bench.compare import ORIGINAL, RETRAINED, Row
from dlfd_fleet.bench.delivery import delivery_command
from dlfd_fleet.bench.devices import devices_command
from dlfd_fleet.bench.report import Summary, summarise, write_report
from dlfd_fleet.bench.runner import Plan, Results, run_bench
from dlfd_fleet.bench.scale import scale_command

__all__ = [
    "ORIGINAL",
    "RETRAINED",
    "Plan",
    "Results",
    "Row",
    "Summary",
    "bench_command",
    "delivery_command",
    "devices_command",
    "federated_command",
    "log_to_mlflow",
    "run_bench",
    "scale_command",
    "summarise",
    "write_report",
]
