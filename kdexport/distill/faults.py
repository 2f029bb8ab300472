"""Exceptions of the user's own code, as messages with their place."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kdexport.data.samples import Dataset
from kdexport.distill.inference import out_of_memory
from kdexport.errors import KDExportError

PACKAGE = Path(__file__).parents[1]


@contextmanager
def named(who: str, doing: str, hint: str = "fix the code; --verbose shows the traceback") -> Iterator[None]:
    """Turn what a network or function of the user's raises into a message; a device out of memory is not its fault.

    Args:
        who: Whose code it is, e.g. ``"the student"``.
        doing: When it was called, e.g. ``"in training mode, with a batch of 4"``.
        hint: What to do about it.

    Raises:
        KDExportError: Anything was raised.
    """
    try:
        yield
    except (KDExportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        what = f"{type(error).__name__}{f': {text}' if text else ''}"
        raise KDExportError(f"{who} raises {what} {doing}{place_of(error)}", hint=hint) from error


def place_of(error: BaseException) -> str:
    """Return the last line of an error's traceback that is no library's, as `` (nets.py, line 12)``, or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if "site-packages" not in path.parts and PACKAGE not in path.parents and not frame.filename.startswith("<"):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def check_output(output: object, samples: int, dataset: Dataset, who: str, *, training: bool) -> Tensor:
    """Return a network's output if it is what the data's task asks for, of finite numbers.

    Raises:
        KDExportError: It is a tuple, has another shape, or holds NaN or infinity.
    """
    when = "in training mode" if training else "in evaluation mode"
    if not isinstance(output, Tensor):
        size = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
        raise KDExportError(
            f"{when} {who} gives a {type(output).__name__}{size}, not a tensor of logits",
            hint="leave its further heads out (e.g. args = { aux_logits = false }), or wrap it in a class whose forward"
            " returns the logits alone in training too, and name that as file.py:Name",
        )
    dataset.task.check_outputs(tuple(output.shape), samples, dataset.class_names, f"{when} {who}")
    if not bool(torch.isfinite(output.detach()).all()):
        raise KDExportError(
            f"{when} {who} gives NaN or infinity",
            hint="look at its weights (NaN in the file?) and its preprocessing (a std of 0?)",
        )
    return output
