"""[search]: the budget, the spaces of candidates, and how many are tried."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeGuard

from pydantic import AfterValidator, Field, model_validator

from kdexport import objects
from kdexport.errors import did_you_mean
from kdexport.precisions import checked_or_fp32
from kdexport.recipe.networks import TEACHER, Prune, _checked_keep
from kdexport.recipe.section import Section


class Budget(Section):
    """[search.budget]: what a student may cost and lose."""

    latency_ms: float | None = Field(
        None, gt=0, description="Largest median latency of a call, in milliseconds. Left out: no limit."
    )
    speedup: float | None = Field(
        None, gt=0, description="Least speed-up against the teacher: the ratio of the median latencies."
    )
    size_mib: float | None = Field(None, gt=0, description="Largest size of the file, in MiB. Left out: no limit.")
    memory_mib: float | None = Field(
        None, gt=0, description="Largest peak memory of the whole process, in MiB. Left out: no limit."
    )
    drop: float | None = Field(
        None,
        ge=0,
        description="Largest loss of the task's score against the teacher, in its own unit: 0.01 is one point.",
    )
    min_score: float | None = Field(
        None, description="Least score of the task; where a lower score is better, the largest. Left out: no limit."
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError("limits nothing: set latency_ms, speedup, size_mib, memory_mib, drop or min_score")
        return self


class SearchSpace(Section):
    """[[search.space]]: a family of students, by its arguments."""

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take a class or a factory for the reference."""
        if isinstance(values, dict) and "model" in values:
            return {**values, "model": objects.network_reference(values["model"])}
        return values

    model: str = Field(
        description=(
            "A network by reference as in student.model; a pattern of names, e.g. timm:mobilenetv3_small_*; or teacher "
            "with prune."
        )
    )
    args: dict[str, Any] = Field(
        {},
        description=(
            "Keyword arguments of the class or factory: a list is a set of choices, { low, high } a range (also step, "
            "log = true), anything else is fixed."
        ),
    )
    weights: str | None = Field(
        None,
        description='Weights to start from: a file, or "pretrained" for the library\'s own. Left out: new weights.',
    )
    prune: dict[str, Any] | None = Field(
        None,
        description=(
            "Keys of student.prune where model is teacher, each a value, a list of choices or a range: "
            "{ keep = { low = 0.1, high = 0.8 } }."
        ),
    )
    image_size: int | tuple[int, ...] | dict[str, Any] | None = Field(
        None,
        description=(
            "Height and width, in pixels, that the network takes: a number, a list of choices or a range. Left out: as "
            "student.preprocessing says."
        ),
    )
    precision: Annotated[tuple[str, ...], AfterValidator(checked_or_fp32)] = Field(
        ("fp32",),
        min_length=1,
        description="Precisions that each candidate is measured in: fp32, fp16, int8, int8-dynamic, int4.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prune is not None and self.model != TEACHER:
            raise ValueError(f'prune takes parts out of the teacher, and model is {self.model}: set model = "teacher"')
        if self.model == TEACHER and not self.prune:
            raise ValueError('model = "teacher" says nothing of what is taken out: set prune = { keep = [0.3, 0.5] }')
        for key, value in (self.prune or {}).items():
            if key not in Prune.model_fields:
                near = did_you_mean(key, Prune.model_fields) or f"known here: {', '.join(Prune.model_fields)}"
                raise ValueError(f"prune.{key}: unknown key; {near.strip()}")
            for one in values_of(f"prune.{key}", value) if key == "keep" else ():
                try:
                    _checked_keep(one)
                except ValueError as error:
                    raise ValueError(f"prune.keep {error}") from None
        for key, value in self.args.items():
            values_of(f"args.{key}", value)
        for size in () if self.image_size is None else values_of("image_size", self.image_size):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"image_size: a side is a whole number of pixels, not {size!r}")
        return self


class SearchFinalists(Section):
    """[search.finalists]: who trains in full, and what of the method is varied then."""

    count: int = Field(2, ge=1, description="Number of candidates that train in full and are scored on the test split.")
    temperature: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="Temperatures that the best finalist is also trained with. By default that of the recipe alone."
    )
    label_weight: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="Weights of the labels' loss that the best finalist is also trained with. By default none."
    )
    method: tuple[str, ...] = Field(
        (),
        description="Methods that the best finalist is also trained with, in place of the first term. By default none.",
    )


class Search(Section):
    """[search]: a budget, and the students among which one is found that meets it."""

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take classes and factories in its spaces."""
        if isinstance(values, dict) and isinstance(values.get("space"), list | tuple):
            return {**values, "space": [SearchSpace.from_python(space) for space in values["space"]]}
        return values

    budget: Budget = Field(description="What a student may cost and lose.")
    device: str = Field("cpu", description="Device to measure on, as in bench.devices: cpu, cuda, openvino, web, ...")
    remote: str | None = Field(
        None,
        description="Another machine to measure on, by ssh: USER@HOST, as bench --remote. Left out: this machine.",
    )
    batch_size: int = Field(1, ge=1, description="Samples per call that is measured.")
    threads: int = Field(1, ge=1, description="Threads within one operator.")
    trials: int = Field(
        20, ge=1, description="Number of candidates that are built and measured, before any is trained."
    )
    trained: int = Field(
        9, ge=1, description="Number of candidates within the budget that begin to train; the rest are left untrained."
    )
    reduction: int = Field(
        3, ge=2, description="Successive halving: one of so many goes on to train so many times as long."
    )
    min_epochs: int = Field(
        2, ge=1, description="Fewest epochs before candidates are compared; distill.epochs are the full training."
    )
    seed: int | None = Field(None, ge=0, description="Seed of what is drawn from the spaces. Left out: the recipe's.")
    storage: str | None = Field(
        None,
        description=(
            "Where Optuna keeps the study, as a URL that Optuna takes: sqlite:///FILE, postgresql://..., mysql://... "
            "Left out: study.db in the search's directory."
        ),
    )
    space: tuple[SearchSpace, ...] = Field(description="Families of students to choose from.")
    finalists: SearchFinalists = Field(
        SearchFinalists(), description="Who trains in full, and what of the method is varied then."
    )

    @model_validator(mode="after")
    def _has_a_space(self) -> Self:
        if not self.space:
            raise ValueError('space is empty: add a [[search.space]] table, e.g. model = "nets.py:Student" with args')
        return self


RANGE = {"low", "high", "step", "log"}


def is_range(value: Any) -> bool:
    """Whether a value of a space is a range: a table with low and high."""
    return isinstance(value, Mapping) and {"low", "high"} <= set(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def values_of(name: str, value: Any) -> tuple[Any, ...]:
    """Return a set of choices, the two ends of a range, or a fixed value alone.

    Raises:
        ValueError: An empty set, or a range that is none.
    """
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name} is an empty list: give at least one choice, or leave it out")
        return tuple(value)
    if not isinstance(value, Mapping) or not set(value) & {"low", "high"}:
        return (value,)
    low, high, step = value.get("low"), value.get("high"), value.get("step")
    if set(value) - RANGE or not (_is_number(low) and _is_number(high)):
        raise ValueError(f"{name}: a range is {{ low = 1, high = 4 }}, with step or log = true where needed")
    if not low <= high:
        raise ValueError(f"{name}: low is {low} and high {high}: low must not be above high")
    if step is not None and (not _is_number(step) or step <= 0):
        raise ValueError(f"{name}: step must be a number above 0, not {step!r}")
    if value.get("log") and (low <= 0 or step is not None):
        raise ValueError(f"{name}: log = true needs low above 0 and no step")
    return (low, high)
