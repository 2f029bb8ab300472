"""What the user asks for: TOML plus overrides, validated, every fault reported at once.

A ``Recipe`` in memory holds absolute paths; ``write`` turns them relative to the file that it writes, so that a run
directory can be moved together with what it refers to.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdexport import references
from kdexport.artifacts import write_text
from kdexport.errors import RecipeError, did_you_mean
from kdexport.precisions import checked
from kdexport.terms import DIST, METHODS, OWN, Term

MAX_FAULTS_SHOWN = 20
DAY = 86_400.0  # seconds


class Section(BaseModel):
    """A table of the recipe: unknown keys and wrong types are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    OLD_NAMES: ClassVar[dict[str, str]] = {}  # keys that are still read: old name -> name

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for old, new in cls.OLD_NAMES.items():
            if old in values and new in values:
                raise ValueError(f"{old} is the old name of {new}: give one of the two")
            values = {new if key == old else key: value for key, value in values.items()}
        return values


Side = Annotated[int, Field(ge=1, lt=1 << 16)]  # of an image, in pixels


class PreprocessingSpec(Section):
    """What the recipe says of a model's preprocessing; what is left out is inferred."""

    size: tuple[Side, Side] | None = None  # height, width
    resize: Literal["squash", "crop"] | None = None
    crop_share: float | None = Field(None, gt=0, le=1)  # with crop: ImageNet's 224 of 256 is 0.875
    resample: Literal["bilinear", "bicubic"] | None = None  # how pixels are averaged when an image is resized
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = None  # of pixels scaled to 0..1
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = None


class Data(Section):
    """[data]: where the samples come from and how they are split."""

    source: str
    val_fraction: float = Field(0.1, gt=0, lt=1)  # of train, where the source gives no validation split
    test_fraction: float = Field(0.2, gt=0, lt=1)  # of all, where the source gives no test split
    fraction: float = Field(1.0, gt=0, le=1)  # of the training split to use
    root: str | None = None  # torchvision: where its files lie
    download: bool = False
    args: dict[str, Any] = {}  # for file.py:Name
    text_column: str = "text"
    label_column: str = "label"
    on_bad_sample: Literal["fail", "skip"] = "fail"
    tokenizer: str | None = None  # of text: hf:NAME_OR_DIR
    text_length: int = Field(128, ge=1)  # tokens, at most
    unlabelled: str | None = None  # imagefolder:DIR, more pictures that the student learns from the teacher alone
    image_size: tuple[Side, Side] | None = None  # height, width to decode pictures to; None: what the networks need


class Training(Section):
    """How a network is trained."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(128, ge=1)  # over all processes
    micro_batch_size: int | None = Field(None, ge=1)  # how many at a time, where memory is short; gradients add up
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(0.002, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)  # step: shares of the training; 150, 180, 210 of 240
    warmup_epochs: float = Field(0.0, ge=0)
    clip_grad_norm: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: Literal["auto"] | bool = "auto"  # memory format; auto: true on a GPU, as it is stored on a CPU
    compile: bool = False  # torch.compile, which pays where a training takes hours
    checkpoint_minutes: float = Field(10.0, gt=0)  # beside the one at each epoch's end
    augment: tuple[str, ...] = ()
    balanced: bool = False  # every class as often in an epoch, however many samples it has
    keep: Literal["best", "last"] = "best"  # by validation accuracy
    patience: int | None = Field(None, ge=1)  # stop after so many epochs without a better one


class TeacherSpec(Section):
    """[[teacher.also]]: one more network to learn from."""

    model: str
    args: dict[str, Any] = {}
    weights: str | None = None
    weights_key: str | None = None  # which of several sets of weights in the file, by its nest or prefix
    strict: bool = True
    class_order: Literal["by_name", "by_position"] = "by_name"  # by_position: whatever class names the model carries
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    train: Training | None = None
    weight: float = Field(1.0, gt=0)  # of its word, against the other teachers'


class Teacher(TeacherSpec):
    """[teacher]: the network to learn from, first among several if there are ``also`` others."""

    also: tuple[TeacherSpec, ...] = ()
    combine: Literal["average", "confidence"] = "average"  # the surer of a sample a teacher is, the more it counts

    def named(self) -> tuple[tuple[str, TeacherSpec], ...]:
        """Return all teachers by the names of their files: teacher, teacher-2, ..."""
        return ("teacher", self), *((f"teacher-{number}", also) for number, also in enumerate(self.also, 2))


class Student(Section):
    """[student]: the network to ship."""

    model: str
    args: dict[str, Any] = {}
    weights: str | None = None
    weights_key: str | None = None  # which of several sets of weights in the file, by its nest or prefix
    strict: bool = True
    class_order: Literal["by_name", "by_position"] = "by_name"  # by_position: whatever class names the model carries
    preprocessing: PreprocessingSpec = PreprocessingSpec()


class DataFree(Section):
    """[distill.data_free]: make the training images from the teacher alone; no real one is looked at."""

    samples: int = Field(10_000, ge=1)  # to make
    steps: int = Field(400, ge=4)  # of the generator; images are kept from the second quarter on
    latent: int = Field(100, ge=1)  # numbers that an image is made from
    lr: float = Field(0.001, gt=0)
    one_hot: float = Field(1.0, ge=0)  # weights: the teacher is sure of a class,
    activation: float = Field(0.1, ge=0)  # its embedding is strong,
    entropy: float = Field(5.0, ge=0)  # all classes are as frequent,
    statistics: float = Field(5.0, ge=0)  # and its batch normalizations see what they saw


class Distill(Training):
    """[distill]: how the student learns from the teacher."""

    label_weight: float = Field(0.1, ge=0)
    views: int = Field(4, ge=1)
    teacher_top_k: int | None = Field(None, ge=1)  # logits kept of each view; None: all, above 1,000 classes 128
    teacher_cache: str | None = None  # folder of the teacher's logits, for runs to share; None: the run's own
    baseline: bool = True
    generations: int = Field(1, ge=1)  # born again: each student teaches the next, the last one is kept
    data_free: DataFree | None = None
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()  # where the epochs of all phases are shown as well
    quantize_aware: bool = False  # then fine-tune with int8's rounding in place: weights and ranges are learnt for it
    quantize_aware_epochs: int | None = Field(None, ge=1)  # None: a quarter of epochs
    quantize_aware_lr: float | None = Field(None, gt=0)  # None: a tenth of lr
    # The best of those that compare logits alone, in benchmarks/results/methods_cifar10.md; models/README.md says more.
    terms: tuple[Term, ...] = (DIST(method="dist", beta=2.0, gamma=2.0, temperature=4.0),)

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.label_weight == 0 and all(term.weight == 0 for term in self.terms):
            raise ValueError("label_weight and every term's weight are 0: the student would learn nothing")
        return self

    @model_validator(mode="after")
    def _made_samples_have_no_labels(self) -> Self:
        if self.data_free is not None and (self.label_weight > 0 or any("labels" in term.needs for term in self.terms)):
            raise ValueError("samples made by data_free have no labels: set label_weight = 0 and leave out dkd")
        return self


class Export(Section):
    """[export]: the ONNX files to write."""

    opset: int = Field(18, ge=17, le=26)
    quantize: Annotated[tuple[str, ...], AfterValidator(checked)] = ()  # keys of precisions.PRECISIONS
    bake_preprocessing: bool = True
    any_image_size: bool = False  # images of any size go in and are resized in the graph
    softmax: bool = False  # probabilities come out in place of logits
    top_k: int = Field(0, ge=0)  # so many best classes come out as well, by name
    license: str | None = None  # of the weights; written into the files
    parity_tolerance: float = Field(1e-4, gt=0)
    calibration: Literal["auto", "minmax", "entropy", "percentile"] = "auto"  # auto: the best on the validation split
    calibration_samples: int = Field(256, ge=1)
    weight_bits: Literal[7, 8] = 7  # of int8 weights: 8 overflows on x86 without VNNI
    max_accuracy_drop: float | None = Field(None, ge=0)  # of a variant, on validation: operators return to fp32 for it
    max_output_error: float | None = Field(None, gt=0)  # the same, where there is no accuracy: RMS of the difference


Count = Annotated[int, Field(ge=1)]


class Bench(Section):
    """[bench]: what to measure on."""

    model_config = ConfigDict(allow_inf_nan=False)

    devices: tuple[str, ...] = Field(("cpu",), min_length=1)
    batch_sizes: tuple[Count, ...] = Field((1,), min_length=1)
    threads: tuple[Count, ...] = Field((1,), min_length=1)
    precision: float = Field(0.02, gt=0)  # half-width of the median's interval that ends the measuring, as a share
    min_seconds: float = Field(1.0, gt=0, le=DAY)  # measured, per model, device, batch and thread count
    max_seconds: float = Field(20.0, gt=0, le=DAY)  # the same, by the clock, where the fewest rounds do not take longer
    rounds: Count = 5  # fewest fresh processes per model: one process is never believed alone
    allow_fallback: bool = False
    streams: tuple[Count, ...] = (1,)  # concurrent callers of one session: throughput, beside the latency of one caller
    provider_options: dict[str, str] = {}  # of the execution provider, for every device but the CPU
    batch_axis: str | None = None  # which axis holds the samples: its name, or its position; None: told by its name
    power_command: str | None = None  # prints watts; else RAPL and NVML are asked
    timeout_s: float = Field(300.0, gt=0, le=DAY)  # a process that is silent for longer is ended, its model has failed


class Require(Section):
    """[require]: what the model to ship must hold."""

    OLD_NAMES = {"max_accuracy_drop": "max_drop", "min_accuracy": "min_score"}

    max_drop: float | None = Field(None, ge=0)  # of the task's score, against the teacher
    min_score: float | None = None  # of the task's score; where lower is better, the largest that is allowed
    min_speedup: float | None = Field(None, gt=0)
    max_size_mib: float | None = Field(None, gt=0)
    max_latency_ms: float | None = Field(None, gt=0)
    latency_percentile: Literal[50, 90, 95, 99] = 50  # that max_latency_ms limits
    max_memory_mib: float | None = Field(None, gt=0)  # peak of the whole process
    parity: bool = False  # the file has been proved equal to the PyTorch model
    undecided: Literal["pass", "fail"] = "pass"  # what a limit within the 95 % interval counts as
    prefer: Literal["latency", "size", "accuracy"] = "latency"  # which of several fitting models to pick
    batch_size: int | None = Field(None, ge=1)  # at which speed is judged; None: the smallest measured
    threads: int | None = Field(None, ge=1)


class Recipe(Section):
    """All that one run is asked to do."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0)
    task: str | None = None  # classification, multilabel, ...: what the network is for; None: read off the data
    data: Data
    teacher: Teacher
    student: Student
    distill: Distill = Distill()
    export: Export = Export()
    bench: Bench = Bench()
    require: Require = Require()

    @model_validator(mode="after")
    def _quantize_aware_is_for_int8(self) -> Self:
        if self.distill.quantize_aware and "int8" not in self.export.quantize:
            raise ValueError(
                'distill.quantize_aware trains for int8, and export.quantize does not ask for it: add "int8" there'
            )
        return self

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML recipe and apply ``key=value`` overrides.

        Raises:
            RecipeError: Absent, not TOML, or not valid; every fault is listed.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(
                f"there is no recipe at {path}",
                hint="check the path; `kdexport init --list` shows reference recipes to start from",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}", hint="give a UTF-8 TOML file") from error
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(
                f"{path} is not TOML: {error}", hint="fix that line; https://toml.io shows the form"
            ) from None
        return cls.parse(document, base=path.parent, overrides=overrides, origin=str(path))

    @classmethod
    def parse(
        cls,
        document: Mapping[str, Any],
        *,
        base: Path = Path(),
        overrides: Iterable[str] = (),
        origin: str = "the recipe",
    ) -> Self:
        """Validate a recipe given as nested dicts.

        Paths are relative to ``base``, those of overrides to the working directory.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return _validated(cls, document, base, overrides, origin)

    def write(self, path: Path) -> None:
        """Write the resolved recipe, every default spelled out, with paths relative to its folder."""
        write_text(path, self.to_toml(relative_to=path.parent))

    def to_toml(self, *, relative_to: Path) -> str:
        """Return the resolved recipe, every default spelled out, with paths relative to a folder."""
        return tomli_w.dumps(self.to_dict(relative_to=relative_to))

    def to_dict(self, *, relative_to: Path) -> dict[str, Any]:
        """Return the recipe as TOML values with paths relative to a folder."""
        document = self.model_dump(mode="json", exclude_none=True)
        base = relative_to.resolve()
        return _map_references(
            document, lambda text: references.relative(text, base), lambda text: os.path.relpath(text, base)
        )


class StandaloneExport(Section):
    """What ``export`` is asked without a recipe: the form of the file, and the data where there are some."""

    data: Data | None = None
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    export: Export = Export()

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Validate settings as ``Recipe.parse`` does.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return _validated(cls, document, Path(), (), "what the flags say")


class EvaluationRequest(Section):
    """What ``evaluate`` is asked without a recipe: the data and the model."""

    seed: int = Field(default=0, ge=0)
    task: str | None = None
    data: Data
    student: Student  # the model: under this name in a recipe too

    @classmethod
    def parse(cls, overrides: Iterable[str]) -> Self:
        """Validate ``key=value`` settings as ``Recipe.parse`` does.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return _validated(cls, {}, Path(), overrides, "what the flags ask for")


Document = TypeVar("Document", bound=Section)


def _validated(
    kind: type[Document], document: Mapping[str, Any], base: Path, overrides: Iterable[str], origin: str
) -> Document:
    whole = _with_absolute_paths(_copy(document), base.resolve())
    for override in overrides:
        _apply(whole, override)
    whole = _with_absolute_paths(whole, Path.cwd())
    try:
        return kind.model_validate(_tuples(whole))
    except ValidationError as error:
        faults = _describe(error)
        shown = [f"  {fault}" for fault in faults[:MAX_FAULTS_SHOWN]]
        if len(faults) > MAX_FAULTS_SHOWN:
            shown.append(f"  ... and {len(faults) - MAX_FAULTS_SHOWN} more")
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            "\n".join([f"{origin} has {count}:", *shown]),
            hint="fix what is listed, then give the same command again",
        ) from None


def _with_absolute_paths(document: dict[str, Any], base: Path) -> dict[str, Any]:
    return _map_references(
        document,
        lambda text: references.absolute(text, base),
        lambda text: os.path.normpath(base / Path(text).expanduser()),
    )


def _map_references(document: dict[str, Any], reference: Any, path: Any) -> dict[str, Any]:
    """Apply a function to each field that holds a reference or a path; a wrong type is left for validation."""
    for section, key, function in (
        ("data", "source", reference),
        ("data", "root", path),
        ("data", "tokenizer", reference),
        ("data", "unlabelled", reference),
        ("teacher", "model", reference),
        ("teacher", "weights", path),
        ("student", "model", reference),
        ("student", "weights", path),
        ("distill", "teacher_cache", path),
    ):
        head = document.get(section)
        also = head.get("also") if section == "teacher" and isinstance(head, dict) else None
        for table in (head, *(also if isinstance(also, list) else ())):
            if isinstance(table, dict) and isinstance(table.get(key), str) and table[key] != PRETRAINED:
                table[key] = function(table[key])
    distill = document.get("distill")
    terms = distill.get("terms") if isinstance(distill, dict) else None
    for term in terms if isinstance(terms, list) else ():
        if isinstance(term, dict) and isinstance(term.get("method"), str) and ":" in term["method"]:
            term["method"] = reference(term["method"])
    return document


PRETRAINED = "pretrained"  # as weights: the library's own (torchvision, timm)


def _apply(document: dict[str, Any], override: str) -> None:
    """Set one ``a.b.c=value``; the value is read as TOML, else taken as text."""
    key, equals, value = override.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(
        "."
    )  # terms[0].weight, as faults name it, is terms.0.weight
    if not equals or not all(parts):
        raise RecipeError(f"--set {override!r} is not of the form key=value", hint="e.g. --set distill.epochs=10")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    table: Any = document
    for part in parts[:-1]:
        table = _step(table, part, override)
    if isinstance(table, list):
        table[_index(table, parts[-1], override)] = parsed
    else:
        table[parts[-1]] = parsed


def _step(table: Any, part: str, override: str) -> Any:
    if isinstance(table, list):
        return table[_index(table, part, override)]
    inner = table.setdefault(part, {})
    if not isinstance(inner, dict | list):
        raise RecipeError(f"--set {override!r}: '{part}' is a value, not a table", hint="e.g. --set distill.epochs=10")
    return inner


def _index(table: list[Any], part: str, override: str) -> int:
    if part.isdigit() and int(part) < len(table):
        return int(part)
    raise RecipeError(
        f"--set {override!r}: '{part}' is not one of the {len(table)} entries",
        hint="count from 0, e.g. --set distill.terms.0.temperature=4.0",
    )


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _tuples(value: Any) -> Any:
    """Turn lists into tuples: strict validation wants the frozen form."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _describe(error: ValidationError) -> list[str]:
    """Say each fault in one line: where, what, and what was probably meant."""
    lines = []
    for fault in error.errors():
        location = list(fault["loc"])
        if len(location) > 3 and location[1] == "terms" and location[3] in (*METHODS, OWN):
            del location[3]  # the union's tag is not a key of the recipe
        where = _dotted(location)
        kind = fault["type"]
        if kind == "extra_forbidden":
            known = _keys_at(location[:-1])
            hint = did_you_mean(str(location[-1]), known) or f"known here: {', '.join(sorted(known))}"
            lines.append(f"{where}: unknown key; {hint.strip()}")
        elif kind == "missing":
            lines.append(f"{where}: missing, and there is no default")
        elif kind == "union_tag_invalid":
            method = str(fault["input"].get("method"))
            near = did_you_mean(method, METHODS) or f"there are: {', '.join(METHODS)}"
            lines.append(f"{where}.method: no method is called '{method}'; {near.strip()}")
        elif kind == "union_tag_not_found":
            lines.append(f"{where}.method: missing; there are: {', '.join(METHODS)}")
        elif kind == "value_error":
            lines.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}")
        else:
            message = fault["msg"].replace("Input should", "should")
            lines.append(f"{where}: {message}, not {_shorten(fault['input'])}")
    return lines


def _dotted(location: list[Any]) -> str:
    return (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "the recipe"
    )


def _keys_at(location: list[Any]) -> list[str]:
    """Return the keys that a table of the recipe may hold."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):  # a term: its keys depend on the method; all are offered
            return sorted({key for term in METHODS.values() for key in term.model_fields})
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
        if model is None:
            return sorted({key for term in METHODS.values() for key in term.model_fields})
    return list(model.model_fields)


def _shorten(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."
