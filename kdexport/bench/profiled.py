"""The measured process's side of a profile: a session with ONNX Runtime's profiler and one without, in turns."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Optional

import numpy as np

from kdexport.bench import timing
from kdexport.bench.profile import Calls, chain_model, read_events
from kdexport.bench.session import CPU, BoundSession, open_session, sizes_change

Waited = Optional[Callable[[], int]]


def model_and_chain(
    task: Mapping[str, Any], feeds: Mapping[str, np.ndarray], device_id: int, waited_ns: Waited
) -> tuple[Calls, Calls]:
    """Profile a model, and the chain of operators that tells what the profiler costs.

    Args:
        task: ``path``, ``provider``, ``provider_options``, ``threads``.
        feeds: The model's inputs.
        device_id: Of the device.
        waited_ns: How long this process has waited for a core so far.
    """
    threads = task["threads"]
    model = _calls(task["path"], task["provider"], task["provider_options"], threads, feeds, device_id, waited_ns)
    chain = _calls(chain_model(), CPU, {}, threads, {"v0": np.ones(1, np.float32)}, 0, waited_ns)
    return model, chain


def _calls(
    path: str | bytes,
    provider: str,
    options: Mapping[str, str],
    threads: int,
    feeds: Mapping[str, np.ndarray],
    device_id: int,
    waited_ns: Waited,
) -> Calls:
    with tempfile.TemporaryDirectory() as folder:
        plain, profiled = (open_session(path, provider, options, threads, one)[0] for one in (None, f"{folder}/p"))
        runs = [_steady(BoundSession(session, feeds, provider, device_id)) for session in (plain, profiled)]
        plain_ns, profiled_ns = timing.in_turns(runs, waited_ns)
        with open(profiled.end_profiling(), encoding="utf-8") as handle:  # noqa: PTH123 - pathlib is not loaded here
            events = json.load(handle)
    return read_events(events, plain_ns, profiled_ns)


def _steady(bound: BoundSession) -> Callable[[], None]:
    """Warm a session up and return how to run it: without buffers for outputs whose sizes change from run to run."""
    bound.run()
    bound.keep_outputs()
    try:
        bound.run()
    except Exception as error:
        if not sizes_change(error):
            raise
        bound.run_allocating()
        return bound.run_allocating
    return bound.run
