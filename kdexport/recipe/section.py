"""The base of every table of a recipe: unknown keys, old names and Python objects are treated alike."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdexport.recipe.text import tuples

DAY = 86_400.0  # seconds


class Section(BaseModel):
    """A table of the recipe: unknown keys, wrong types, and numbers that are none or endless are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    OLD_NAMES: ClassVar[dict[str, str]] = {}  # keys that are still read: old name -> name

    @classmethod
    def from_python(cls, values: Any) -> Any:
        """Return what Python code gives for the table in the form that TOML has: references in place of objects."""
        return values

    @model_validator(mode="before")
    @classmethod
    def _as_in_toml(cls, values: Any) -> Any:
        values = cls.from_python(values)
        if not isinstance(values, dict):
            return values
        for old, new in cls.OLD_NAMES.items():
            if old in values and new in values:
                raise ValueError(f"{old} is the old name of {new}: give one of the two")
            values = {new if key == old else key: value for key, value in values.items()}
        return {key: tuples(value) for key, value in values.items()}


Side = Annotated[int, Field(ge=1, lt=1 << 16)]  # of an image, in pixels
Count = Annotated[int, Field(ge=1)]
