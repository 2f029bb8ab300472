"""One ONNX Runtime session as it is measured: its options, its bound inputs and outputs, where its nodes went.

Runs in the child. Only numpy and onnxruntime are needed.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - only the measured process imports this module

RECORD = "session.record_ep_graph_assignment_info"

# The smallest model there is: one Identity of one float, opset 13, IR 7. What a session costs before any model.
EMPTY_MODEL = (
    b'\x08\x07:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01eZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def options_for(threads: int) -> ort.SessionOptions:
    """Return the session options of a latency measurement: one operator after another, ``threads`` within each."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(RECORD, "1")
    return options


def open_session(
    model: str | bytes, provider: str, provider_options: Mapping[str, str], threads: int
) -> tuple[Any, float]:
    """Load a model on one provider, the CPU behind it for what it does not take.

    Returns:
        The session and the milliseconds that loading took.
    """
    options = options_for(threads)
    providers: list[Any] = [(provider, dict(provider_options))]
    if provider != "CPUExecutionProvider":
        providers.append("CPUExecutionProvider")
    before = time.perf_counter_ns()
    session = ort.InferenceSession(model, options, providers=providers)
    return session, (time.perf_counter_ns() - before) / 1e6


def placement(session: Any) -> dict[str, dict[str, int]]:
    """Return provider -> operator -> nodes, as the runtime assigned them; empty where it cannot tell (before 1.24)."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    found: dict[str, Counter[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        found.setdefault(subgraph.ep_name, Counter()).update(node.op_type for node in subgraph.get_nodes())
    return {provider: dict(operators) for provider, operators in found.items()}


class Bound:
    """A session with its inputs and outputs bound: ``run`` moves no data and makes no Python objects.

    Outputs of known shape live in buffers that are made once; the runtime allocates the others itself on each call.
    """

    def __init__(self, session: Any, feeds: Mapping[str, np.ndarray]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name)

    def keep_outputs(self) -> None:
        """After the first run: bind each output to a buffer of the size that it turned out to have."""
        outputs = self._binding.get_outputs()
        names: Sequence[str] = [output.name for output in self._session.get_outputs()]
        for name, value in zip(names, outputs, strict=True):
            if value.is_tensor() and value.device_name() == "cpu":
                self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """Do one inference."""
        self._session.run_with_iobinding(self._binding)
