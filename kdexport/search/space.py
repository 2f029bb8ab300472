"""What may be tried: the recipe's spaces as parameters, candidates drawn from them, and the recipe of each candidate.

A candidate is plain values by name, as Optuna keeps them. Nothing is built here.
"""

import fnmatch
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdexport import objects
from kdexport.artifacts import key_of
from kdexport.errors import RecipeError, SourceError
from kdexport.recipe import TEACHER, NetworkSpec, Recipe, Search, SearchSpace, is_range
from kdexport.references import parse, relative

Value = str | int | float | bool | None
ENUMERATED = 20_000  # candidates: spaces up to this size are listed whole, larger ones are drawn from
MODEL, IMAGE_SIZE = "model", "image_size"


@dataclass(frozen=True)
class Parameter:
    """One thing that is chosen: one of a few values, or a number of a range."""

    name: str  # "model", "args.width", "prune.keep", "image_size"
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False  # whether the range is of whole numbers

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range of real numbers without a step."""
        if self.choices:
            return len(self.choices)
        if self.high == self.low:
            return 1
        step = self.step or (1 if self.whole else 0)
        return math.inf if step == 0 else math.floor((self.high - self.low) / step + 1e-9) + 1

    def values(self) -> tuple[Any, ...]:
        """Return all values of a finite one."""
        if self.choices:
            return self.choices
        return tuple(self._at(index) for index in range(int(self.size)))

    def draw(self, rng: np.random.Generator) -> Any:
        """Return a value, each as likely as any; of a logarithmic range each magnitude."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.size < math.inf and not self.log:
            return self._at(int(rng.integers(int(self.size))))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        drawn = float(rng.uniform(low, high))
        return self._number(math.exp(drawn) if self.log else drawn)

    def _at(self, index: int) -> int | float:
        return self._number(self.low + index * (self.step or 1))

    def _number(self, value: float) -> int | float:
        return min(max(round(value), round(self.low)), round(self.high)) if self.whole else float(f"{value:.6g}")


@dataclass(frozen=True)
class Candidate:
    """One student that may be tried."""

    space: int
    values: dict[str, Any]  # parameter -> value; fixed ones too
    precisions: tuple[str, ...] = ("fp32",)
    method: dict[str, Any] = field(default_factory=dict)  # what a finalist changes of [distill]

    @property
    def key(self) -> str:
        """Stands for all of it."""
        return key_of(self.space, self.values, self.precisions, self.method)[:12]

    @property
    def label(self) -> str:
        """What people read: ``Student(width=16, depth=2)``."""
        model = str(self.values[MODEL])
        reference = parse(model)
        name = reference.name or reference.target.rpartition("/")[2]
        name = name.partition("-")[0] if reference.kind == objects.SCHEME else name
        shown = [
            f"{key.partition('.')[2]}={_short(value)}"
            for key, value in self.values.items()
            if key.startswith(("args.", "prune."))
        ]
        if IMAGE_SIZE in self.values:
            shown.append(f"{self.values[IMAGE_SIZE]} px")
        shown += [f"{key}={_short(value)}" for key, value in self.method.items()]
        return f"{name}({', '.join(shown)})" if shown else name

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "space": self.space,
            "values": self.values,
            "precisions": list(self.precisions),
            "method": self.method,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Candidate":
        """Return what ``to_json`` gave."""
        return cls(
            int(document["space"]),
            dict(document["values"]),
            tuple(document["precisions"]),
            dict(document["method"]),
        )


class Spaces:
    """All candidates of a recipe's search.

    Args:
        search: The recipe's table.
        base: What candidates name files relative to: the search's directory, so that both can be moved.

    Raises:
        SourceError: A pattern of names fits none.
    """

    def __init__(self, search: Search, base: Path) -> None:
        self._spaces = search.space
        self.parameters = [_parameters(index, space, base) for index, space in enumerate(search.space)]

    @property
    def size(self) -> float:
        """How many candidates there are; may be infinite."""
        return sum(math.prod(parameter.size for parameter in found) for found in self.parameters)

    def listed(self) -> list[Candidate] | None:
        """Return every candidate, None where there are too many to list."""
        if self.size > ENUMERATED:
            return None
        return [
            self._candidate(index, dict(zip([one.name for one in found], values, strict=True)))
            for index, found in enumerate(self.parameters)
            for values in itertools.product(*(parameter.values() for parameter in found))
        ]

    def drawn(self, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Return so many different candidates, fewer where there are no more; each space has an equal share."""
        found: dict[str, Candidate] = {}
        for attempt in range(20 * count):
            index = attempt % len(self.parameters)
            made = self._candidate(index, {one.name: one.draw(rng) for one in self.parameters[index]})
            found.setdefault(made.key, made)
            if len(found) == count:
                break
        return list(found.values())

    def features(self, candidate: Candidate) -> list[float]:
        """Return a candidate as numbers for a model of its latency: choices one-hot, numbers also as logarithms."""
        row: list[float] = [float(index == candidate.space) for index in range(len(self.parameters))]
        for index, found in enumerate(self.parameters):
            for parameter in found:
                value = candidate.values.get(parameter.name) if index == candidate.space else None
                numbers = not parameter.choices or all(_is_number(choice) for choice in parameter.choices)
                if numbers and parameter.size > 1:
                    number = float(value) if _is_number(value) else 0.0  # type: ignore[arg-type]
                    row += [number, math.log(number) if number > 0 else 0.0]
                elif parameter.size > 1:
                    row += [float(value == choice) for choice in parameter.choices]
        return row

    def _candidate(self, index: int, values: dict[str, Any]) -> Candidate:
        return Candidate(index, values, self._spaces[index].precision)


def _parameters(index: int, space: SearchSpace, base: Path) -> list[Parameter]:
    models = tuple(relative(model, base) for model in _models(space.model, f"search.space[{index}]"))
    found = [Parameter(MODEL, choices=models)]
    found += [_parameter(f"args.{name}", value) for name, value in sorted(space.args.items())]
    found += [
        _parameter(f"prune.{name}", _listed_once(name, value)) for name, value in sorted((space.prune or {}).items())
    ]
    if space.image_size is not None:
        found.append(_parameter(IMAGE_SIZE, space.image_size))
    return found


def _listed_once(name: str, value: Any) -> Any:
    """Return a key of prune as a space has it: layers and ignore are lists themselves, a list of lists is a choice."""
    several = isinstance(value, list | tuple) and any(isinstance(item, list | tuple) for item in value)
    return [value] if name in ("layers", "ignore") and isinstance(value, list | tuple) and not several else value


def _parameter(name: str, value: Any) -> Parameter:
    if isinstance(value, list | tuple):
        return Parameter(name, choices=tuple(dict.fromkeys(_plain(item) for item in value)))
    if not is_range(value):
        return Parameter(name, choices=(_plain(value),))
    low, high, step = value["low"], value["high"], value.get("step")
    whole = all(isinstance(number, int) for number in (low, high, *([] if step is None else [step])))
    return Parameter(name, low=low, high=high, step=step, log=bool(value.get("log")), whole=whole)


def _plain(value: Any) -> Value:
    """Return a value as Optuna keeps it: a list or a table as JSON with a mark before it."""
    return value if isinstance(value, Value) else AS_JSON + json.dumps(value)


AS_JSON = "json:"


def as_python(value: Any) -> Any:
    """Return a value as a factory takes it."""
    return json.loads(value.removeprefix(AS_JSON)) if isinstance(value, str) and value.startswith(AS_JSON) else value


def _models(model: str, where: str) -> tuple[str, ...]:
    """Return the models that a reference stands for: a pattern's names are looked up, nothing is downloaded."""
    reference = parse(model)
    if not any(character in reference.target for character in "*?[") or reference.kind not in ("timm", "torchvision"):
        return (model,)
    if reference.kind == "timm":
        from kdexport.models.networks import import_timm

        names = list(import_timm().list_models(reference.target))
    else:
        from torchvision.models import list_models

        names = fnmatch.filter(list_models(), reference.target)
    if not names:
        raise SourceError(
            f"{where}.model: no model of {reference.kind} is called like {reference.target}",
            hint=f'look the names up: python -c "import {reference.kind}; '
            + (
                'print(timm.list_models())"' if reference.kind == "timm" else 'print(torchvision.models.list_models())"'
            ),
        )
    return tuple(f"{reference.kind}:{name}" for name in names)


def recipe_of(candidate: Candidate, recipe: Recipe, base: Path) -> Recipe:
    """Return the recipe that makes a candidate alone: that of the search, with this student and without the search.

    Args:
        candidate: The student.
        recipe: Of the search.
        base: What the candidate's paths are relative to.

    Raises:
        RecipeError: The student is none that a recipe can have.
    """
    search = recipe.search
    if search is None:
        raise RecipeError("the recipe has no [search]", hint="add [search] with a budget and a [[search.space]]")
    document = recipe.to_dict(relative_to=base)
    del document["search"]
    space = search.space[candidate.space]
    student = {key: value for key, value in document["student"].items() if key not in ("model", "args", "prune")}
    plain = {key: as_python(value) for key, value in candidate.values.items()}
    prune = {key.partition(".")[2]: value for key, value in plain.items() if key.startswith("prune.")}
    if candidate.values[MODEL] == TEACHER:
        own = {*NetworkSpec.model_fields} - {"model"}
        student = {key: value for key, value in student.items() if key not in own or key in ("preprocessing", "output")}
        student = {**student, "model": TEACHER, "prune": prune}
        if student.get("preprocessing") in (None, {}):  # as the teacher's
            student.pop("preprocessing", None)
    else:
        args = {key.partition(".")[2]: value for key, value in plain.items() if key.startswith("args.")}
        student = {**student, "model": candidate.values[MODEL], "args": args}
        if space.weights is not None:
            student["weights"] = space.weights
    if IMAGE_SIZE in plain:
        side = int(plain[IMAGE_SIZE])
        student["preprocessing"] = {**student.get("preprocessing", {}), "size": [side, side]}
    document["student"] = student
    _change_method(document["distill"], candidate.method)
    return Recipe.parse(document, base=base, origin=f"the recipe of {candidate.label}")


def _change_method(distill: dict[str, Any], method: Mapping[str, Any]) -> None:
    """Put a finalist's temperature, weight of the labels and method into [distill]."""
    terms = distill.get("terms") or [{}]
    if "method" in method:
        weight = terms[0].get("weight")
        terms[0] = {"method": method["method"], **({} if weight is None else {"weight": weight})}
    if "temperature" in method:
        for term in terms:
            if "temperature" in term or "method" in method:
                term["temperature"] = method["temperature"]
    distill["terms"] = terms
    if "label_weight" in method:
        distill["label_weight"] = method["label_weight"]


def variations(search: Search) -> list[dict[str, Any]]:
    """Return the ways in which the best finalist is trained beside the recipe's own, every combination."""
    given = {
        name: list(getattr(search.finalists, name))
        for name in ("temperature", "label_weight", "method")
        if getattr(search.finalists, name)
    }
    combined = itertools.product(*given.values())
    return [dict(zip(given, values, strict=True)) for values in combined] if given else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(as_python(value))
    return text if len(text) <= 24 else f"{text[:23]}…"


def one_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates without those that stand for the same student, in their order."""
    return list({candidate.key: candidate for candidate in candidates}.values())
