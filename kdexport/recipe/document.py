"""What the user asks for: TOML plus overrides, validated, every fault reported at once.

A ``Recipe`` in memory holds absolute paths; ``write`` turns them relative to the file that it writes, so that a run
directory can be moved together with what it refers to.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, model_validator

from kdexport import objects, references
from kdexport.artifacts import read_text, write_text
from kdexport.errors import RecipeError
from kdexport.recipe.data import Data, PreprocessingSpec
from kdexport.recipe.measuring import Bench, Export, Require
from kdexport.recipe.networks import SEARCHED, TEACHER, NetworkSpec, Student, Teacher
from kdexport.recipe.search import Search
from kdexport.recipe.section import Section
from kdexport.recipe.text import code_of, map_references, parsed_toml, validated, with_absolute_paths
from kdexport.recipe.training import Distill


class Recipe(Section):
    """All that one run is asked to do."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description=("Name of the run, and of its directory runs/NAME: letters, digits, dots, dashes and underscores."),
    )
    seed: int = Field(0, ge=0, description="Seed of every random choice.")
    task: str | None = Field(
        None,
        description=(
            "What the network is for: classification, multilabel, regression, segmentation or embedding. Left out: "
            "read off the data, where that leaves no doubt; identities look like classes, so embedding is to be named."
        ),
    )
    scores: tuple[str, ...] = Field(
        (),
        description=(
            "Scores of your own, told beside the task's: file.py:name of functions (outputs, targets) -> number."
        ),
    )
    data: Data = Field(description="Where the samples come from and how they are split.")
    teacher: Teacher = Field(description="The network to learn from.")
    student: Student = Field(description="The network to ship.")
    distill: Distill = Field(Distill(), description="How the student learns from the teacher.")
    export: Export = Field(Export(), description="The ONNX files to write.")
    bench: Bench = Field(Bench(), description="What to measure, and where.")
    require: Require = Field(Require(), description="What the model to ship must hold; exit code 3 where it does not.")
    search: Search | None = Field(
        None, description="For `kdexport search`: a budget and spaces of students. Left out: the student is given."
    )

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Take objects in every table; a path is relative to the working directory, and the name may be left out."""
        if not isinstance(values, dict):
            return values
        tables: dict[str, type[Section]] = {
            **{"data": Data, "teacher": Teacher, "student": Student, "distill": Distill, "search": Search}
        }
        given = {key: tables[key].from_python(value) if key in tables else value for key, value in values.items()}
        if isinstance(given.get("scores"), tuple | list):
            given["scores"] = [objects.refer(score) if callable(score) else score for score in given["scores"]]
        references = [value for table in given.values() if isinstance(table, dict) for value in table.values()]
        if any(isinstance(value, str) and value.startswith(f"{objects.SCHEME}:") for value in references):
            given.setdefault("name", "run")
        return with_absolute_paths(given, Path.cwd())

    @model_validator(mode="before")
    @classmethod
    def _student_of_the_search(cls, values: Any) -> Any:
        """Let a recipe that searches for its student leave it out, or say of it what all candidates have in common."""
        if not isinstance(values, dict) or values.get("search") is None:
            return values
        student = values.get("student", {})
        return {**values, "student": {"model": SEARCHED, **student}} if isinstance(student, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _student_of_the_teacher(cls, values: Any) -> Any:
        """Let ``student.model = "teacher"`` stand for the teacher's own network, of which it is a part."""
        student: Any = values.get("student") if isinstance(values, dict) else None
        teacher: Any = values.get("teacher") if isinstance(values, dict) else None
        if not isinstance(student, dict) or not isinstance(teacher, dict) or student.get("model") != TEACHER:
            return values
        if all(student.get(key) is None for key in ("layers", "vocabulary", "prune")):
            raise ValueError(
                'student.model = "teacher" says nothing of what is kept of it: set student.prune.keep (e.g. 0.4), '
                "student.prune.layers, or student.layers of a transformer"
            )
        own = {key: teacher[key] for key in NetworkSpec.model_fields if key in teacher}
        return {**values, "student": {**own, **student, "model": teacher.get("model")}}

    @model_validator(mode="before")
    @classmethod
    def _terms_of_the_task(cls, values: Any) -> Any:
        """Let a recipe of embeddings that names no term compare their directions: they have no classes."""
        distill: Any = values.get("distill", {}) if isinstance(values, dict) else None
        if not isinstance(distill, dict) or values.get("task") != "embedding" or "terms" in distill:
            return values
        return {**values, "distill": {**distill, "terms": [{"method": "cosine"}]}}

    @model_validator(mode="after")
    def _the_teacher_can_be_pruned(self) -> Self:
        teacher, student = self.teacher, self.student
        if student.prune is None:
            return self
        if (student.model, student.args, student.weights) != (teacher.model, teacher.args, teacher.weights):
            raise ValueError(
                f"student.prune takes parts out of the teacher, and student.model is {student.model}: set "
                'student.model = "teacher", or take [student.prune] out'
            )
        if teacher.model.endswith((".onnx", ".pt2")):
            raise ValueError(
                f"{Path(teacher.model).name} cannot be pruned: a graph has no layers to take channels out of; "
                'give the teacher as its code and weights, e.g. model = "nets.py:Big" and weights'
            )
        if student.prune.importance == "taylor" and self.distill.data_free is not None:
            raise ValueError(
                'student.prune.importance = "taylor" looks at training data, and distill.data_free is to use none: '
                'set importance = "magnitude"'
            )
        return self

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if self.search is None:
            return self
        prunes = any(space.model == TEACHER for space in self.search.space)
        if prunes and self.teacher.model.endswith((".onnx", ".pt2")):
            raise ValueError(
                f"{Path(self.teacher.model).name} cannot be pruned: a graph has no layers to take channels out of; "
                'give the teacher as its code and weights, or take the [[search.space]] with model = "teacher" out'
            )
        if self.distill.generations > 1 or self.distill.quantize_aware:
            raise ValueError(
                "search trains candidates once each: take distill.generations and distill.quantize_aware out, and set "
                "them in the picked recipe"
            )
        return self

    @model_validator(mode="after")
    def _quantize_aware_is_for_int8(self) -> Self:
        if self.distill.quantize_aware and "int8" not in self.export.quantize:
            raise ValueError(
                'distill.quantize_aware trains for int8, and export.quantize does not ask for it: add "int8" there'
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML recipe and apply ``key=value`` overrides.

        Raises:
            RecipeError: Absent, not TOML, or not valid; every fault is listed.
        """
        path = Path(path)
        try:
            text = read_text(path)
        except FileNotFoundError:
            raise RecipeError(
                f"there is no recipe at {path}",
                hint="check the path; `kdexport init --list` shows reference recipes to start from",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}", hint="give a UTF-8 TOML file") from error
        return cls.parse(parsed_toml(text, str(path)), base=path.parent, overrides=overrides, origin=str(path))

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
        return validated(cls, document, base, overrides, origin)

    def code(self) -> str:
        """Say whose code runs: the Python files and modules that the references name; empty where they name none."""
        found = code_of(self.model_dump(mode="json", exclude_none=True))
        return f"runs the code of {', '.join(found)}" if found else ""

    def write(self, path: Path) -> None:
        """Write the resolved recipe, every default spelled out, with paths relative to its folder."""
        write_text(path, self.to_toml(relative_to=path.parent))

    def to_toml(self, *, relative_to: Path) -> str:
        """Return the resolved recipe, every default spelled out, with paths relative to a folder."""
        return tomli_w.dumps(self.to_dict(relative_to=relative_to))

    def to_dict(self, *, relative_to: Path) -> dict[str, Any]:
        """Return the recipe as TOML values with paths relative to a folder."""
        document = self.model_dump(mode="json", exclude_none=True)
        # A rate that was left out depends on the network, and still does when the recipe is run again.
        for table, training in (
            (document["distill"], self.distill),
            (document["teacher"].get("train"), self.teacher.train),
        ):
            if training is not None and "lr" not in training.model_fields_set:
                del table["lr"]
        base = relative_to.resolve()
        return map_references(
            document, lambda text: references.relative(text, base), lambda text: os.path.relpath(text, base)
        )


class StandaloneExport(Section):
    """What ``export`` is asked without a recipe: the form of the file, the data where there are some, and where auto
    measures.
    """

    data: Data | None = None
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    export: Export = Export()
    bench: Bench = Bench()

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Validate settings as ``Recipe.parse`` does.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return validated(cls, document, Path(), (), "what the flags say")


class EvaluationRequest(Section):
    """What ``evaluate`` is asked without a recipe: the data and the model."""

    seed: int = Field(default=0, ge=0)
    task: str | None = None
    scores: tuple[str, ...] = ()
    data: Data
    student: Student  # the model: under this name in a recipe too

    @classmethod
    def parse(cls, overrides: Iterable[str]) -> Self:
        """Validate ``key=value`` settings as ``Recipe.parse`` does.

        Raises:
            RecipeError: Not valid; every fault is listed.
        """
        return validated(cls, {}, Path(), overrides, "what the flags ask for")
