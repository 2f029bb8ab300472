"""Which release of ONNX Runtime reads which file: by its operator set, file format (IR) version and operators.

1.15 and later were measured: each release was installed and given one-node models of every opset and IR version
(``benchmarks/export_runtimes.py``). What came before cannot be installed for Python 3.11 and is as documented in
https://onnxruntime.ai/docs/reference/compatibility.html.
"""

import re
from typing import NamedTuple

from kdexport.errors import KDExportError


class Reads(NamedTuple):
    """The newest versions that a runtime takes."""

    opset: int
    ir: int


RUNTIMES: dict[tuple[int, int], Reads] = {
    (1, 12): Reads(17, 8),
    (1, 13): Reads(17, 8),
    (1, 14): Reads(18, 8),
    (1, 15): Reads(19, 9),
    (1, 16): Reads(19, 9),
    (1, 17): Reads(20, 9),
    (1, 18): Reads(21, 10),
    (1, 19): Reads(21, 10),
    (1, 20): Reads(21, 10),
    (1, 21): Reads(22, 10),
    (1, 22): Reads(22, 10),
    (1, 23): Reads(23, 11),
    (1, 24): Reads(25, 13),
    (1, 25): Reads(26, 13),
}

# The IR version that each opset came with: the oldest that may hold it.
IR_OF_OPSET = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}
OPSETS = (min(IR_OF_OPSET), max(IR_OF_OPSET))
DEFAULT_OPSET = 18

# Operators beyond the ONNX standard that quantized variants hold, and the release that brought them.
CONTRIBUTED = {"MatMulNBits": (1, 17)}


def for_runtime(version: str) -> Reads:
    """Return what to write for a given release, e.g. ``"1.16"`` or ``"1.16.3"``.

    The opset is the default one where the release reads it: newer operators gain nothing by themselves.

    Raises:
        KDExportError: No such release, or one too old for the exporter.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+.*)?", version.strip())
    release = (int(match[1]), int(match[2])) if match else (0, 0)
    oldest, newest = min(RUNTIMES), max(RUNTIMES)
    if release < oldest:
        raise KDExportError(
            f"no file can be written for onnxruntime '{version}': the exporter starts at opset {OPSETS[0]}, "
            f"which {_text(oldest)} was the first to read",
            hint=f"give a release from {_text(oldest)} to {_text(newest)} or later, e.g. --for-runtime 1.16",
        )
    reads = RUNTIMES[max(known for known in RUNTIMES if known <= release)]
    opset = min(DEFAULT_OPSET, reads.opset)
    return Reads(opset, IR_OF_OPSET[opset])


def ir_for(opset: int) -> int:
    """Return the IR version to write an opset in.

    Raises:
        KDExportError: No such opset, or none that the exporter writes.
    """
    if opset not in IR_OF_OPSET:
        raise KDExportError(
            f"opset {opset} cannot be written", hint=f"choose one from {OPSETS[0]} to {OPSETS[1]}, e.g. --opset 18"
        )
    return IR_OF_OPSET[opset]


def oldest_runtime(opset: int, ir: int, operators: dict[str, int]) -> str | None:
    """Return the oldest release that reads a file, e.g. ``"1.14"``; None where no known one does."""
    needed = max((CONTRIBUTED[name] for name in operators if name in CONTRIBUTED), default=(0, 0))
    able = [release for release, reads in RUNTIMES.items() if reads.opset >= opset and reads.ir >= ir]
    able = [release for release in able if release >= needed]
    return _text(min(able)) if able else None


def _text(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
