"""``--input-shape``: what an input looks like, written without the batch."""

import re
from dataclasses import dataclass

from kdexport.errors import KDExportError, did_you_mean

BATCH = "batch"
SHAPE = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<dims>(?:(?:\d+|batch)(?:[,x](?:\d+|batch))*)?)"
    r"(?::(?P<type>[a-z]+\d*)(?:<(?P<limit>\d+))?)?"
)
TYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")  # numpy's names
SHAPES_HELP = (
    "[NAME:]SIZES[:TYPE[<LIMIT]], sizes without the batch, e.g. 3,224,224, ids:128:int64<30000, t::int64 for one "
    "number a sample, h:2,batch,64 where the batch is not first"
)


@dataclass(frozen=True)
class InputShape:
    """One input of a network: its sizes without the batch, and where the batch goes."""

    name: str
    dims: tuple[int, ...]
    type: str | None = None  # of TYPES; None: float32, or what the network's weights are
    limit: int | None = None  # integers are drawn below it; None: as large as the network takes, up to 100
    batch_axis: int = 0
    named: bool = False  # by the user: then it is a parameter of forward


def parse_shape(text: str, number: int) -> InputShape:
    """Parse one ``--input-shape``.

    Args:
        text: ``3,224,224``, ``pixels:3x224x224``, ``ids:128:int64<30000``, ``t::int64`` for an input of shape [batch],
            ``h:2,batch,64`` where the batch is not the first axis; elsewhere the batch is left out.
        number: Which input it is, counted from 0: names an input that has no name.

    Raises:
        KDExportError: It has another form.
    """
    match = SHAPE.fullmatch(text.strip())
    types = ", ".join(TYPES)
    if match is None or not text.strip(" :"):
        raise KDExportError(f"--input-shape {text!r} is no shape", hint=f"it is {SHAPES_HELP}; types: {types}")
    if match["type"] is not None and match["type"] not in TYPES:
        near = did_you_mean(match["type"], TYPES)
        if match["type"] == "bfloat16":
            near = "ONNX Runtime's CPU takes no bfloat16: leave the type out, and the network is written in float32; "
        raise KDExportError(f"--input-shape {text!r} has no known type", hint=f"{near}types: {types}")
    sizes = re.split("[,x]", match["dims"]) if match["dims"] else []
    dims = tuple(int(size) for size in sizes if size != BATCH)
    if 0 in dims or sizes.count(BATCH) > 1:
        raise KDExportError(
            f"--input-shape {text!r} has {'an axis of size 0' if 0 in dims else 'two batch axes'}",
            hint="an input with one number a sample has no sizes: e.g. timestep::int64",
        )
    return InputShape(
        match["name"] or ("input" if number == 0 else f"input_{number}"),
        dims,
        match["type"],
        None if match["limit"] is None else int(match["limit"]),
        sizes.index(BATCH) if BATCH in sizes else 0,
        named=match["name"] is not None,
    )
