"""The precisions that a file can be written in, beside fp32: one line each.

A precision is a function of its own module, ``(VariantInputs) -> VariantBuilder`` (``export.variant_inputs``), and its
line here. Nothing heavy is imported: recipes are checked against this table.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kdexport.errors import did_you_mean


@dataclass(frozen=True)
class Precision:
    """How a variant is made and judged."""

    builder: str  # "module:function"; imported when the first variant is made
    tolerance: float  # on the relative difference from fp32, before the user is warned; it ships all the same
    needs_calibration: bool = False  # cannot do without samples
    instead: tuple[str, ...] = ()  # what to take where it cannot be had

    def load(self) -> Callable[..., Any]:
        """Return the function that makes the builder."""
        module, _, name = self.builder.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


AUTO = "auto"  # of each operator the one that measured time says: int8, fp16 or fp32

PRECISIONS: dict[str, Precision] = {
    "fp16": Precision("kdexport.export.fp16:builder", 0.02),
    "int8": Precision("kdexport.export.int8:builder", 0.2, needs_calibration=True, instead=("int8-dynamic", "fp16")),
    "int8-dynamic": Precision("kdexport.export.int8_dynamic:builder", 0.2, instead=("int8",)),
    "int4": Precision("kdexport.export.int4:builder", 0.3, instead=("int8",)),
    AUTO: Precision(
        "kdexport.export.measured_precision:builder", 0.2, needs_calibration=True, instead=("int8", "fp16")
    ),
}


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, each once.

    Raises:
        ValueError: There is no such precision.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in PRECISIONS:
            near = did_you_mean(name, PRECISIONS).strip()
            known = ", ".join(PRECISIONS)
            raise ValueError(f"there is no precision {name!r}; there are {known}{f'; {near}' if near else ''}")
    return names


def checked_or_fp32(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as ``checked``; fp32 may be among them, and auto may not: it is chosen for trained weights."""
    names = tuple(dict.fromkeys(names))
    if AUTO in names:
        raise ValueError(
            'auto is no precision to search in: take precision = ["fp32", "int8"], and export the student that is '
            "found with --quantize auto"
        )
    checked(name for name in names if name != "fp32")
    return names
