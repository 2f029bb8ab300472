"""Exporters and quantizers talk a lot: their words are kept, and shown only where they fail."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# Of no use to the user: they speak of torch's and onnxscript's own code.
KNOWN_WARNINGS = (DeprecationWarning, FutureWarning)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Catch what is printed and logged while the block runs, and leave logging as it was.

    onnxruntime.quantization logs to the root logger, which would otherwise gain a handler for the rest of the process.
    stderr is left alone: progress bars live there. Warnings that are not known to be harmless are left alone.
    """
    heard = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = [logging.StreamHandler(heard)]
    with contextlib.redirect_stdout(heard), warnings.catch_warnings():
        for category in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", category=category)
        try:
            yield heard
        finally:
            root.handlers = handlers
            root.setLevel(level)


def tail(heard: io.StringIO, characters: int = 500) -> str:
    """Return the end of what was heard, on one line."""
    return " ".join(heard.getvalue().split())[-characters:]
