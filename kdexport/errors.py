"""What can go wrong, and how the user is told.

    KDExportError            a fault that the user can fix: message + hint, exit 1
    ├── RecipeError          the recipe: every fault at once
    ├── SourceError          a model, weights file or data set that cannot be had
    ├── StorageError         a disk or folder that does not take what is written, whatever that is
    ├── DivergenceError      a training whose loss or weights are no numbers any more
    ├── ParityError          the ONNX file and the PyTorch model differ
    ├── DeviceError          a device or execution provider that isn't there
    └── RequirementError     a [require] line that does not hold, exit 3

Anything else that escapes is a fault of kdexport and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from kdexport import memory

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095  # of Linux; other systems take no more
LONGEST_NAME, MOST_NAMES = 200, 2000  # that are compared: the time grows with the square of their length
MAX_DIGITS = 19  # of a number in 64 bits
EXIT_USER_ERROR = 1
EXIT_REQUIREMENT = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class KDExportError(Exception):
    """A fault that the user can fix.

    Args:
        message: What was asked and why it cannot be done, in one sentence.
        hint: What to type or change next. Required: an error without a way out is half an error.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, message: str, *, hint: str) -> None:
        # Wherever memory ran out, in a library or the user's code, what was being done then is not what is wrong.
        if memory.exhausted(sys.exc_info()[1]) and not memory.TOLD.search(message):
            message, hint = f"{message.rstrip(': ')} ({memory.message()})", f"{memory.HINT}; or else: {hint}"
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(KDExportError):
    """The recipe is not what it should be."""


class SourceError(KDExportError):
    """A model, a weights file or a data set cannot be had."""


class StorageError(KDExportError):
    """A disk or a folder does not take what is written: full, read-only, taken away.

    What was being made is not at fault, and what is tried in its place has no better luck: never a reason to leave out
    a variant, an operator or a candidate.
    """


class DivergenceError(KDExportError):
    """A training has diverged: its loss or its weights are not finite."""


class ParityError(KDExportError):
    """The ONNX file does not compute what the PyTorch model computes."""


class DeviceError(KDExportError):
    """A device or an execution provider isn't there, or did not take the work."""


class RequirementError(KDExportError):
    """A requirement of the recipe is not met."""

    exit_code = EXIT_REQUIREMENT


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it, where a training has saved its state: as Ctrl-C, with the shell's exit code."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` where a known name is close, else an empty string."""
    likely = [one for one in known if len(one) <= LONGEST_NAME] if len(name) <= LONGEST_NAME else []
    near = difflib.get_close_matches(name, likely[:MOST_NAMES], n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'? " if near else ""


def whole_number(text: str) -> int | None:
    """Return a text as a whole number from 0 on, None where it is none: ``int`` raises on "²" and on 5,000 digits."""
    return int(text) if text.isdecimal() and len(text) < MAX_DIGITS else None


def is_too_long(path: str | Path) -> bool:
    """Whether no file system takes a path: a name in it of more than 255 bytes, or 4,096 in all."""
    parts = [len(part.encode(errors="surrogatepass")) for part in Path(path).parts]
    return sum(parts) + len(parts) > MAX_PATH_BYTES or max(parts, default=0) > MAX_NAME_BYTES


def check_readable(path: Path) -> None:
    """Hold that a file may be read: each library has words of its own where it may not, "no such file" among them.

    Raises:
        SourceError: The user has no right to.
    """
    if path.exists() and not os.access(path, os.R_OK):
        raise SourceError(
            f"{path} may not be read: permission denied",
            hint=f"its owner gives the right with: chmod a+r {shlex.quote(str(path))}",
        )


def without_temporary_folder(error: BaseException) -> KDExportError | None:
    """Return what to say where an error is that no folder for temporary files can be written to, else None."""
    if not isinstance(error, FileNotFoundError) or "usable temporary directory" not in str(error):
        return None
    return KDExportError(
        f"no folder for temporary files can be written to: {str(error).partition('found in ')[2] or error}",
        hint="name one with TMPDIR, as in: TMPDIR=/path/to/a/folder kdexport ...",
    )
