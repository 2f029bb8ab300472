"""Epochs in MLflow, through its own client: each number of metrics.jsonl is a metric, its epoch the step.

They go to the server that ``MLFLOW_TRACKING_URI`` names, else into ``mlruns`` in the run directory:
``MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri RUN/mlruns``.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "mlruns"  # in the run directory
MOST_METRICS = 1000  # that MLflow takes in one call
ALLOW_FILES = "MLFLOW_ALLOW_FILE_STORE"  # MLflow 3.x refuses a store of files without it


class MlflowTracker:
    """One run of the experiment ``kdexport``.

    Args:
        experiment: The experiment; made where there is none.
        run_name: How the run is called.
        folder: The run directory.
    """

    name = "mlflow"

    def __init__(self, experiment: str, run_name: str, folder: Path) -> None:
        self._experiment, self._run_name, self._folder = experiment, run_name, folder
        self._client: Any = None
        self._run = ""

    def start(self) -> None:
        """Open the store and begin a run; raises what MLflow does where the server does not answer."""
        from mlflow.tracking import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            os.environ.setdefault(ALLOW_FILES, "true")
            address = (self._folder / FOLDER).resolve().as_uri()
        self._client = MlflowClient(tracking_uri=address)
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(experiment, run_name=self._run_name).info.run_id

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Show one epoch's numbers."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + MOST_METRICS])

    def finish(self) -> None:
        """Close the run."""
        self._client.set_terminated(self._run)
