"""The only things that cross from stage to stage: frozen dataclasses, each one JSON document.

Units stand in the names. ``None`` means *not measured*; it is never 0 and never a guess. Field names that
report.json holds are a contract with other programs (see ``Report``).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from kdexport.errors import is_too_long

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 2

Interval = tuple[float, float]


@dataclass(frozen=True)
class Holds:
    """What a value must hold beside its type where it is read from a file (``from_json``)."""

    holds: Callable[[Any], bool]
    told: str  # completes "size_bytes should be ..."

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def check(value: Any) -> Any:
            if not self.holds(value):
                raise PydanticCustomError("holds", "Input should be {told}", {"told": self.told})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))


def _is_file_name(text: str) -> bool:
    """Whether a file system may hold it: of others even ``Path.is_file`` is an error."""
    return "\0" not in text and not is_too_long(text)


Name = Annotated[str, Holds(bool, "a name: it is empty")]
FileName = Annotated[str, Holds(_is_file_name, "the name of a file")]
Count = Annotated[int, Holds(lambda value: value >= 0, "0 or more")]
Share = Annotated[float, Holds(lambda value: 0 <= value <= 1, "from 0 to 1")]
Milliseconds = Annotated[float, Holds(lambda value: value > 0, "above 0")]


class Shown:
    """A result that is printed as a table, and displayed as the HTML report in a notebook."""

    SHOWN_BY: ClassVar[str] = "kdexport.report.notebook"  # stands above this module, so it is named and not imported

    def __str__(self) -> str:
        return str(importlib.import_module(self.SHOWN_BY).text(self))

    def _repr_html_(self) -> str:
        return str(importlib.import_module(self.SHOWN_BY).page(self))


@dataclass(frozen=True)
class Agreement:
    """How near a model's outputs are to the teacher's, over one split."""

    top1: float | None  # share of decisions that are the same; None where outputs are no decisions
    kl: float | None  # mean over samples of KL(teacher || model) at temperature 1, nats
    logit_correlation: float | None  # Pearson, over all logits centred per sample; None where one is constant


@dataclass(frozen=True)
class Score:
    """How good a model is, in its task's own measure."""

    metric: Name  # "accuracy", "mean_average_precision", ...
    value: float
    ci95: Interval | None
    higher_is_better: bool = True


@dataclass(frozen=True)
class ClassScore:
    """One class's row of the score table."""

    name: str
    samples: Count
    accuracy: Share  # recall: share of this class's samples that were found
    precision: Share | None  # None where the class was never predicted
    f1: Share
    iou: Share | None = None  # intersection over union, where samples are pixels


@dataclass(frozen=True)
class TargetScore:
    """One target's row of the score table, of a task that estimates numbers; in the target's unit."""

    name: str
    mae: float
    rmse: float
    r2: float | None  # None where the target does not vary over these samples
    bias: float  # mean of predicted minus true
    true: tuple[float, ...] = ()  # of some samples, evenly spread over the split
    predicted: tuple[float, ...] = ()  # of the same


@dataclass(frozen=True)
class MaskPicture:
    """What a model sees in one image, small; each map a byte a pixel, row by row, as base64 of zlib's stream."""

    sample: Count  # of the split
    height: Count
    width: Count
    predicted: str  # class ids
    truth: str  # class ids, 255 for none
    image: str = ""  # 36 r + 6 g + b, each color in 6 levels; empty: no image


class _Scored:
    """Accuracy, where that is the score: written into JSON beside it, read from it."""

    DERIVED: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_ci95")
    score: Score | None

    @property
    def accuracy(self) -> float | None:
        """The score, where it is an accuracy."""
        return self.score.value if self.score is not None and self.score.metric == "accuracy" else None

    @property
    def accuracy_ci95(self) -> Interval | None:
        """Its 95 % interval."""
        return self.score.ci95 if self.score is not None and self.score.metric == "accuracy" else None


@dataclass(frozen=True)
class Evaluation(_Scored):
    """What a model scores on one split.

    Two of them are compared in pairs by ``per_sample`` where the score is its mean, else by ``resamples``.
    """

    split: str
    samples: Count
    task: Name
    score: Score
    metrics: dict[str, float | None] = field(default_factory=dict)  # told beside the score: {"macro_f1": 0.97}
    per_class: tuple[ClassScore, ...] = ()
    per_target: tuple[TargetScore, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()  # [true][predicted]; empty above 100 classes
    per_sample: tuple[int | float, ...] = ()  # the score is their mean
    resamples: tuple[float, ...] = ()  # the score of each resample of ``statistics.resample_counts``
    pictures: tuple[MaskPicture, ...] = ()  # of some samples, evenly spread over the split
    chance: float | None = None  # what the best output that looks at no input scores on the same samples
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)  # what a picture of the task's shows


# What becomes of training that a changed recipe would throw away: an error, another training, or one that goes on.
# None is an error where it took more than ten minutes, else another training.
OnChange = Literal["ask", "restart", "extend"]


@dataclass(frozen=True)
class PrunedLayer:
    """One layer of a pruned network that has become smaller, or is gone."""

    layer: str  # its path; of what is no layer's weight the parameter's name
    kind: str  # its class
    before: tuple[int, ...]  # shape of its weight; of a block that is gone, its number of parameters
    after: tuple[int, ...] | None  # None: taken out


@dataclass(frozen=True)
class Pruned:
    """What was cut out of a network, and where."""

    importance: str  # by which channels were ranked: "magnitude", "taylor", "random"
    round_to: int
    keep: float | None  # share of the parameters that was asked for; None: no channels were taken out
    kept: float | None  # and what it has become, of the network without the layers that were taken out
    channels_out: float | None  # share of each layer's channels that was taken out, before rounding
    parameters_before: Count
    parameters: Count
    macs_before: Count | None
    macs: Count | None
    layers: tuple[PrunedLayer, ...]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that the distill stage has made or taken over."""

    name: Name  # "teacher", "student", "student-plain"
    reference: str
    weights: FileName  # path, relative to the run directory
    weights_sha256: str
    parameters: Count
    macs: Count | None  # multiply-accumulates of one sample
    epochs: Count  # trained in this run; 0 for given weights
    seconds: float | None
    best_epoch: int | None
    val_score: float | None  # of the task
    # Learnt with the weights by distill.quantize_aware, for int8: "conv1.weight:input" -> smallest, largest value
    activation_ranges: dict[str, Interval] = field(default_factory=dict)
    pruned: Pruned | None = None  # where channels or layers were taken out of it


@dataclass(frozen=True)
class TeacherScore:
    """One of several teachers, on the validation split."""

    name: str  # "teacher", "teacher-2", ...
    weight: float  # its share of the targets, before confidence
    val_score: float | None  # of the task
    agreement: Agreement  # with what all of them say together


@dataclass(frozen=True)
class ExportFailure:
    """A file that could not be written, or a network that could not be trained, and why."""

    model: str  # "student.int8"
    reason: str
    hint: str


@dataclass(frozen=True)
class DistillResult:
    """What `kdexport distill` hands over (distill.json)."""

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, int]  # samples in each
    splits_made_by: dict[str, str]  # split -> "source" or how it was made
    networks: tuple[TrainedNetwork, ...]
    teachers: tuple[TeacherScore, ...] = ()  # where there are several
    metric: str | None = None  # what a score measures, by its name in JSON: "accuracy", "mean_iou"
    failures: tuple[ExportFailure, ...] = ()  # a network that the run goes on without: student-plain


@dataclass(frozen=True)
class Parity:
    """PyTorch (fp32, eval) against ONNX Runtime on the CPU."""

    max_abs: float
    max_rel: float  # max |onnx - torch| / max |torch|, over each output; a channel of small values by its own
    samples: Count
    tolerance: float  # on max_rel
    passed: bool
    cosine: float | None = None  # smallest over the outputs
    argmax_agreement: float | None = None
    batch_sizes: tuple[int, ...] = ()
    reference: str = "torch"  # or "fp32-onnx" for a quantized file, "onnxruntime-cpu" for a device
    hard_samples: int = 0  # all zero, all equal, the extremes of the value range, beside ``samples``
    other_sizes: int = 0  # batches in which a dynamic axis has another size than in the data
    constant_outputs: tuple[int, ...] = ()  # that are the same for every sample, of several
    # Samples whose outputs hold NaN, or else infinity, from both models alike: equal, but no answers
    nan_samples: int = 0
    infinite_samples: int = 0
    nan_hard_samples: int = 0
    batch_effect: float | None = None  # by what else is in the batch, of a sample's largest output; of dynamic int8


@dataclass(frozen=True)
class TimedOn:
    """Where files were timed to choose a precision by."""

    device: str
    threads: int
    batch_size: int
    machine: str
    cpu: str
    cpu_features: tuple[str, ...]  # which decide what int8 is worth: "avx512_vnni"


@dataclass(frozen=True)
class TriedPrecision:
    """One graph that was tried as precision by measured time."""

    name: str  # "fp32", "int8", "fp16", "mixed 2"
    made: str  # how it was arrived at, in words
    quantized: tuple[int, int] | None  # operators with weights in fewer bits, of how many
    speedup: float | None  # over fp32, in turns with it; None where it could not be measured
    speedup_ci95: Interval | None
    within_limit: bool | None  # of the score; None where it was too slow to be scored
    told: str = ""  # what came out, or why it is not the file, in words


@dataclass(frozen=True)
class MeasuredPrecision:
    """How the precision of each operator was chosen by measured time."""

    chosen: str  # the name of what was tried that became the file
    on: TimedOn
    tried: tuple[TriedPrecision, ...]
    operators: dict[str, str]  # an operator with weights, by its node's name -> "int8", "fp16", "fp32"


@dataclass(frozen=True)
class ModelFile(_Scored):
    """One ONNX file with what is known of it: an entry of ``models`` in report.json."""

    name: Name
    file: FileName  # relative to the run directory, else as the user gave it
    sha256: str
    precision: str
    size_bytes: Count
    parameters: Count | None
    macs: Count | None
    opset: int | None = None
    inputs: dict[str, list[str | int]] = field(default_factory=dict)  # name -> shape, a dynamic axis by name
    operators: dict[str, int] = field(default_factory=dict)
    operators_before: dict[str, int] = field(default_factory=dict)  # of the graph before optimization; fp32 only
    oldest_runtime: str | None = None  # the oldest ONNX Runtime that can load it, e.g. "1.14"
    parity: Parity | None = None
    notes: tuple[str, ...] = ()  # in words: what quantization left in fp32, why parity is weak, ...
    score: Score | None = None  # inside ONNX Runtime, on the test split
    teacher_agreement: Agreement | None = None
    evaluation: Evaluation | None = None
    quantized: tuple[int, int] | None = None  # operators with weights in fewer bits, of how many; None for fp32
    pruned: Pruned | None = None  # what was cut out of the network that it was exported from
    measured_precision: MeasuredPrecision | None = None  # of export.quantize = ["auto"]


@dataclass(frozen=True)
class ExportResult:
    """What `kdexport export` hands over (export.json)."""

    name: str
    models: tuple[ModelFile, ...]
    failures: tuple[ExportFailure, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call at steady state. A percentile that the count cannot carry is None."""

    p50: Milliseconds
    p50_ci95: Interval | None
    p90: Milliseconds | None
    p95: Milliseconds | None
    p99: Milliseconds | None
    mean: float
    std: float
    samples: Count  # calls that count
    quantiles: tuple[Milliseconds, ...] = ()  # 101 values, 0 % to 100 %: the distribution for pictures
    rounds_p50: tuple[
        Milliseconds, ...
    ] = ()  # median of each round (a fresh process), in order: pairs models in a ratio
    turns_p50: tuple[tuple[float, ...], ...] = ()  # the same of each turn within each round
    p90_ci95: Interval | None = None
    p95_ci95: Interval | None = None
    p99_ci95: Interval | None = None
    left_out: int = 0  # calls that do not count: other work had the core meanwhile


@dataclass(frozen=True)
class Memory:
    """MiB, read in a process of its own that only loads and runs the model."""

    peak_rss: float | None  # VmHWM
    model: float | None  # VmRSS after load minus that of an empty session
    device_peak: float | None  # NVML's figure for the process
    wasm_heap: float | None = None  # of a browser's page: what WASM has taken, which never gives back
    page: float | None = None  # of a browser's page, all of it, where the browser tells


@dataclass(frozen=True)
class Browser:
    """What a page was measured in, and how finely its clock told the time."""

    name: str | None
    version: str | None
    clock_ms: float  # its smallest step: browsers coarsen it
    calls_per_sample: int  # the latency's samples are means of so many calls in a row
    isolated: bool  # cross-origin isolated: a finer clock, and threads
    adapter: str | None  # behind WebGPU, as the browser names it
    software: bool | None  # no GPU stands behind that adapter; None without WebGPU, or where the browser hides it


@dataclass(frozen=True)
class OperatorTime:
    """What one operator of a model takes of the median latency, without the profiler's own cost."""

    name: str  # as the runtime calls it
    operator: str  # its type as it ran: QLinearConv where the runtime made one of Conv and its quantizers
    layer: str  # dotted path in the PyTorch module; empty where the file does not tell
    provider: str
    ms: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a call goes; operators and ``between_ms`` sum to ``latency_ms.p50``."""

    operators: tuple[OperatorTime, ...]  # the costliest first
    between_ms: float  # the call itself, and the runtime's own work from one operator to the next
    sum_ms: float  # of both, as profiled, before the scaling to p50
    profiler_us: float  # per operator: what the profiler itself costs, taken out
    profiled_ms: float  # of a call under the profiler


@dataclass(frozen=True)
class Measurement:
    """One model on one device at one batch size and thread count."""

    model: Name
    machine: str
    device: str
    provider: str
    placement: dict[str, float] | None  # provider -> share of nodes; None where the runtime cannot tell
    batch_size: int
    threads: int
    latency_ms: Latency
    throughput_per_s: float
    load_ms: float
    first_run_ms: float
    memory_mib: Memory
    energy_mj: float | None = None  # per call, above what the machine draws at rest
    warnings: tuple[str, ...] = ()
    memory_of_inputs: str | None = None  # where inputs and outputs are bound: "cpu", "cuda"
    compute_share: dict[str, float] | None = None  # provider -> share of the time; only where several take part
    throughput_by_streams: dict[str, float] | None = None  # concurrent callers of one session -> samples per second
    transfer_ms: dict[str, float] | None = None  # "host_to_device", "device_to_host": medians, not in latency_ms
    browser: Browser | None = None  # of a web device
    disturbed: str | None = None  # why no speed-up is decided by this: what other work did meanwhile, in words
    profile: Profile | None = None  # only where it was asked for
    parity: Parity | None = None  # of a page on another device: its outputs against ONNX Runtime's on a CPU
    score: Score | None = None  # of those outputs, where their samples have labels: of few samples, not the model's own


@dataclass(frozen=True)
class Failure:
    """A measurement that could not be made, and why."""

    model: str
    device: str
    batch_size: int | None
    threads: int | None
    reason: str


@dataclass(frozen=True)
class Machine:
    """Fingerprint of the machine that measured."""

    name: str
    system: str
    cpu: str
    cpu_features: tuple[str, ...]  # those that decide int8 and fp16 speed: avx2, avx512f, avx512_vnni, ...
    cores: int | None  # that this process may use; None where a browser does not tell
    memory_mib: int | None
    container: str | None  # limits in words, e.g. "cgroup: 2.0 CPUs, 4096 MiB"
    governor: str | None
    gpus: tuple[str, ...]
    driver: str | None
    python: str | None  # None: a browser measured
    versions: dict[str, str]  # onnxruntime, numpy, ...
    providers: tuple[str, ...]  # that onnxruntime lists; not proved to work


@dataclass(frozen=True)
class BenchResult(Shown):
    """What `kdexport bench` hands over (bench.json): complete in itself, so that machines can be joined later."""

    schema: int = field(default=SCHEMA, init=False)
    name: str
    created: str  # ISO 8601, UTC
    machine: Machine
    models: tuple[ModelFile, ...]  # the first is the baseline
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...] = ()
    recipe: dict[str, Any] | None = None
    training: tuple[dict[str, Any], ...] = ()  # metrics.jsonl, for the training curves
    tested_on: str = ""  # how the test split came about: "source", or what it was cut from; empty without data
    data_warnings: tuple[str, ...] = ()  # what makes a score on these data worth less than it looks
    left_out: dict[str, str] = field(default_factory=dict)  # file that could not be exported -> why


@dataclass(frozen=True)
class Speedup:
    """Baseline's p50 over the model's: above 1 is faster."""

    device: str
    batch_size: int
    threads: int
    ratio: float
    ci95: Interval | None
    machine: str = ""
    disturbed: str | None = None  # why nothing is decided by it: the machine was busy while it was measured


@dataclass(frozen=True)
class Saving:
    """Baseline over the model, for what a condition costs beside time: above 1 is less."""

    machine: str
    device: str
    batch_size: int
    threads: int
    memory_ratio: float | None  # of peak_rss, or of device_peak where there is one
    energy_ratio: float | None


@dataclass(frozen=True)
class Tradeoff:
    """What one model gives up and gains against another."""

    model: Name
    against: Name
    score_delta: float | None  # model minus baseline, in the score's own unit
    score_delta_ci95: Interval | None  # paired
    size_ratio: float  # baseline over model: above 1 is smaller
    speedup: tuple[Speedup, ...]
    savings: tuple[Saving, ...] = ()
    metric: Name = "accuracy"  # the score's

    DERIVED: ClassVar[tuple[str, ...]] = ("accuracy_delta", "accuracy_delta_ci95")

    @property
    def accuracy_delta(self) -> float | None:
        """``score_delta`` where the score is an accuracy."""
        return self.score_delta if self.metric == "accuracy" else None

    @property
    def accuracy_delta_ci95(self) -> Interval | None:
        """Its 95 % interval."""
        return self.score_delta_ci95 if self.metric == "accuracy" else None


@dataclass(frozen=True)
class Dominated:
    """A model that another beats or equals in accuracy, median latency and size, under one condition."""

    model: str
    by: str
    machine: str
    device: str
    batch_size: int
    threads: int
    shown: bool  # whether an interval, or a difference in bytes, supports it


@dataclass(frozen=True)
class Pick:
    """The model to ship."""

    model: str
    why: str


@dataclass(frozen=True)
class DevicePick:
    """The model to ship to one device of one machine, judged at one batch size and thread count."""

    machine: str
    device: str
    batch_size: int
    threads: int
    model: str | None  # None: nothing fits
    why: str
    nearest: str | None = None  # where nothing fits: what misses by the least
    misses: tuple[str, ...] = ()  # by how much, in words
    fastest: str | None = None  # where no score is known and nothing is required: speed alone is compared


@dataclass(frozen=True)
class Gate:
    """One line of the recipe's [require], held against the pick."""

    requirement: str
    limit: float
    value: float | None
    passed: bool
    ci95: Interval | None = None
    verdict: Literal["pass", "fail", "undecided", "not measured"] = "pass"  # undecided: ci95 straddles the limit
    model: str = ""
    machine: str = ""  # empty: holds on every machine
    device: str = ""
    metric: str = ""  # the score's, where the requirement is about it
    higher_is_better: bool = True  # of that score
    setting: str = ""  # in words: which batch size, threads or percentile, where it isn't the usual one


@dataclass(frozen=True)
class Report(Shown):
    """report.json."""

    schema: int = field(default=SCHEMA, init=False)
    name: str
    recipe: dict[str, Any] | None
    machines: tuple[Machine, ...]
    models: tuple[ModelFile, ...]
    measurements: tuple[Measurement, ...]
    tradeoffs: tuple[Tradeoff, ...]
    pick: Pick | None
    gates: tuple[Gate, ...]
    failures: tuple[Failure, ...] = ()
    training: tuple[dict[str, Any], ...] = ()
    findings: tuple[str, ...] = ()  # what the figures show, in sentences
    devices: tuple[DevicePick, ...] = ()
    dominated: tuple[Dominated, ...] = ()
    created: str = ""  # when the latest of the measurements was made; ISO 8601, UTC
    baseline: str = ""  # the model that the others are held against
    tested_on: str = ""  # as in ``BenchResult``
    data_warnings: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


T = TypeVar("T")


def to_json(result: Any) -> dict[str, Any]:
    """Return a result as plain JSON values; a figure that is not finite becomes None."""
    document: dict[str, Any] = _plain(result)
    return document


def dumps(result: Any) -> str:
    """Return a result as an indented JSON document with a newline at its end."""
    return json.dumps(to_json(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(kind: type[T], document: Any) -> T:
    """Build a result from JSON values, checking each type.

    Raises:
        pydantic.ValidationError: The document does not hold what ``kind`` needs.
    """
    key: Any = kind
    built: T = _adapter(key).validate_python(document)
    return built


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what checks a document: made once, for that takes longer than the checking."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        names = [key.name for key in dataclasses.fields(value)] + list(getattr(value, "DERIVED", ()))
        return {name: _plain(getattr(value, name)) for name in names}
    return value
