"""What a variant is made from: what is asked for, the data, and for precision by measured time a timer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from kdexport.export.accuracy_guard import AccuracyGuard
from kdexport.export.fitted_entries import Stamp
from kdexport.onnx.sessions import Arrays
from kdexport.progress import Progress
from kdexport.results import Profile, TimedOn
from kdexport.tasks.base import Task

Ranges = Mapping[str, tuple[float, float]]  # smallest and largest of a value, by its name
Turns = tuple[tuple[float, ...], ...]  # nanoseconds: medians of the turns, of each round


class Timer(Protocol):
    """Times files in turns on one device; see ``kdexport.bench.comparison``."""

    on: TimedOn

    @property
    def profiles(self) -> bool:
        """Whether the device tells the time of operators."""

    def turns(
        self, files: Mapping[str, Path], *, rounds: int, seconds: float
    ) -> tuple[dict[str, Turns], dict[str, str]]:
        """Return each file's turns, and why one could not be measured."""

    def profile(self, file: Path, p50_ms: float) -> Profile | None:
        """Return the time of a file's operators."""


TimerMaker = Callable[[Mapping[str, int], int | None], Timer]  # of sizes of dynamic axes, and of a fixed batch


@dataclass(frozen=True)
class CalibrationData:
    """What variants are made from and judged by: raw samples, one array per input, first axis samples."""

    samples: Callable[[], Arrays]  # for the comparison with fp32
    calibration: Callable[[], Arrays]  # training samples
    validation: Callable[[], tuple[Arrays, NDArray[Any]] | None]  # inputs and targets; None without
    feed: Callable[[Arrays], Arrays] = lambda batch: batch  # turns a batch of them into what the fp32 file takes
    task: Task | None = None  # what the targets are of
    classes: int | None = None  # that they are of; None: what the network gives
    samples_are: str = "validation"  # what ``samples`` are, in words
    stamp: Stamp | None = None  # puts into a file what is found by running it


@dataclass(frozen=True)
class VariantSpec:
    """One variant."""

    precision: str  # a key of PRECISIONS
    calibration: str = "auto"  # int8: minmax, entropy, percentile, or the best of them on the validation split
    weight_bits: int = 7  # int8
    max_drop: float | None = None  # on the validation split, against fp32
    learnt: Ranges = field(default_factory=dict)  # int8: ranges that the student was trained with
    max_output_error: float | None = None  # where there is no accuracy: of fp32's output, see accuracy_guard


@dataclass(frozen=True)
class VariantInputs:
    """What a precision's builder is made from."""

    source: Path  # the fp32 file
    spec: VariantSpec
    data: CalibrationData
    guard: AccuracyGuard
    progress: Progress
    timer: TimerMaker | None = None  # auto: what times files
