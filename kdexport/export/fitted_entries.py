"""What a file says of how its outputs are used, fitted by running it on the validation samples: a threshold.

Each file has its own, for rounding moves cosines; so it is found once the file is there, and then put into it.
"""

from collections.abc import Callable
from pathlib import Path

from kdexport.data.samples import Dataset
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import metadata
from kdexport.onnx.sessions import OnnxSession
from kdexport.scoring import calibrated_task

Stamp = Callable[[Path], None]


def stamp_for(dataset: Dataset, preprocessing: Preprocessing) -> Stamp | None:
    """Return what puts the entries into a file of a network, given the data; None where the task has none.

    Args:
        dataset: Its test split carries the validation samples.
        preprocessing: Of the network.
    """
    if dataset.test.calibration is None:
        return None

    def stamp(path: Path) -> None:
        task = dataset.task
        session = OnnxSession(path, preprocessing, expects=task.activation, output_ndim=task.output_ndim)
        entries = calibrated_task(session.predict, dataset.test, dataset.class_names).file_entries
        metadata.add(path, {f"{metadata.PREFIX}{name}": repr(value) for name, value in entries.items()})

    return stamp
