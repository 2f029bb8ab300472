"""What a child process does first: it ends with its parent. The standard library alone is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
QUIT_SECONDS = 2.0


def end_with_parent() -> None:
    """See to it that this process ends when its parent does, however that ended and whatever a model is doing here.

    Between commands the end of stdin tells; in a model that never returns only the kernel can (Linux), or else a thread
    that sleeps until the pipe's other end is closed. The parent's process id is the first argument, where it is given.
    """
    if signalled_at_parents_death(signal.SIGKILL):
        if len(sys.argv) > 1 and os.getppid() != int(sys.argv[1]):  # it died before
            os._exit(1)
        return
    import select
    import threading

    if hasattr(select, "poll"):
        threading.Thread(target=_watch_parent, args=(select.poll(),), daemon=True).start()


def signalled_at_parents_death(number: int) -> bool:
    """Let the kernel send this process a signal when its parent dies; whether it can: on Linux alone."""
    if sys.platform != "linux":
        return False
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        return True
    return False


def _watch_parent(poller: Any) -> None:
    poller.register(0, 0)  # no event but that the other end is closed
    poller.poll()
    time.sleep(QUIT_SECONDS)  # the end of stdin ends the process by itself, unless a model runs
    os._exit(1)
