"""Exporters and quantizers talk a lot: their words are kept, and shown only where they fail."""

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO

# Of no use to the user: they speak of torch's and onnxscript's own code.
KNOWN_WARNINGS = (DeprecationWarning, FutureWarning)
# Two inputs share their batch axis: that is what was asked for.
KNOWN_MESSAGES = (
    r"# The axis name: \w+ will not be used",
    # torch's own recurrent layers, while they are captured
    r"The \.grad attribute of a Tensor that is not a leaf Tensor",
    r"The tensor attributes? .*_flat_weights",
)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Catch what this thread prints and logs while the block runs, and leave logging as it was.

    Progress bars are drawn by a thread of their own and go on. onnxruntime.quantization logs to the root logger, which
    would otherwise gain a handler for the rest of the process. Warnings that are not known to be harmless are left
    alone.
    """
    captured = io.StringIO()
    loggers = [logging.getLogger(), *_loggers_of("torch")]  # torch's have handlers of their own
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers = [logging.StreamHandler(captured)]
    out, err = _ThisThread(captured, sys.stdout), _ThisThread(captured, sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        for category in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", category=category)
        for message in KNOWN_MESSAGES:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield captured
        finally:
            for logger, (handlers, level) in zip(loggers, before, strict=True):
                logger.handlers = handlers
                logger.setLevel(level)


def tail(captured: io.StringIO, characters: int = 500) -> str:
    """Return the end of what was captured, on one line."""
    return " ".join(captured.getvalue().split())[-characters:]


class _ThisThread(io.TextIOBase):
    """Writes of the thread that made it go to one stream, all others' to another."""

    def __init__(self, mine: io.StringIO, others: TextIO) -> None:
        self._thread, self._mine, self._others = threading.get_ident(), mine, others

    def write(self, text: str) -> int:
        stream = self._mine if threading.get_ident() == self._thread else self._others
        return stream.write(text)

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._others.flush()

    def isatty(self) -> bool:
        return self._others.isatty()


def _loggers_of(package: str) -> list[logging.Logger]:
    """Return the package's loggers that have handlers."""
    known = logging.root.manager.loggerDict.items()
    mine = [logger for name, logger in known if name == package or name.startswith(f"{package}.")]
    return [logger for logger in mine if isinstance(logger, logging.Logger) and logger.handlers]
