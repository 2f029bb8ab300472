"""All that one training depends on."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kdexport.distill.batches import Batches
from kdexport.distill.evaluation import Validation
from kdexport.distill.features import FeatureHooks
from kdexport.distill.objective import Objective
from kdexport.distill.teacher import CachedTeacher, OnlineTeacher
from kdexport.models.preprocessing import Preprocessing
from kdexport.recipe import Training
from kdexport.results import TrainingForm


@dataclass(frozen=True)
class TrainingSetup:
    """What ``fit`` is given, beside the network."""

    phase: str  # "teacher", "student", "student-plain", "student-qat"
    training: Training
    seed: int
    preprocessing: Preprocessing
    batches: Batches
    objective: Objective
    validation: Validation  # after each epoch
    test: Callable[[], Validation]  # of the weights that are kept; all processes make it
    teacher: CachedTeacher | OnlineTeacher | None = None
    taps: FeatureHooks | None = None  # where the objective compares features
    macs: int | None = None  # multiply-accumulates of one sample; None: not known, and no trial of other forms


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended; the network holds the weights that were kept."""

    epochs: int
    best_epoch: int
    val_accuracy: float | None
    seconds: float
    activation_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # quantize_aware
    form: TrainingForm | None = None
