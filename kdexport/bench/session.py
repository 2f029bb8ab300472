"""One ONNX Runtime session as it is measured: its options, its bound inputs and outputs, where its nodes went.

Runs in the measured process. Only numpy and onnxruntime are needed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - only the measured process imports this module

from kdexport.bench.devices import by_name
from kdexport.bench.plan import Device
from kdexport.errors import DeviceError

RECORD = "session.record_ep_graph_assignment_info"
CPU = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

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
    model: str | bytes,
    provider: str,
    provider_options: Mapping[str, str],
    threads: int,
    profile: str | None = None,
) -> tuple[Any, float]:
    """Load a model on one provider, the CPU behind it for what it does not take.

    Args:
        model: A path, or a serialized model.
        provider: ONNX Runtime's name of it.
        provider_options: Its options.
        threads: Within one operator.
        profile: Prefix of a profile to write; None writes none.

    Returns:
        The session and the milliseconds that loading took.
    """
    options = options_for(threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if by_name(provider).nvidia and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from the wheels beside onnxruntime-gpu, where the system has none
    providers = _providers(provider, provider_options, options)
    before = time.perf_counter_ns()
    session = ort.InferenceSession(model, options, providers=providers or None)
    return session, (time.perf_counter_ns() - before) / 1e6


def _providers(provider: str, provider_options: Mapping[str, str], options: ort.SessionOptions) -> list[Any]:
    """Return the providers in order of preference; a plugin's devices go into the options instead."""
    chosen = dict(provider_options)
    if provider == CPU:
        return [(provider, chosen)]
    if provider == OPENVINO and chosen.get("device_type", "CPU") == "CPU" and "load_config" not in chosen:
        chosen.setdefault("num_of_threads", str(options.intra_op_num_threads))  # else it takes every core
    if provider not in ort.get_available_providers():
        plugged = [device for device in ort.get_ep_devices() if device.ep_name == provider]
        which = int(chosen.pop("device_id", 0))
        if which < len(plugged):
            options.add_provider_for_devices([plugged[which]], chosen)
            return []
    same_device = {"device_id": chosen.get("device_id", "0")}
    return [(provider, chosen), *((other, same_device) for other in by_name(provider).behind), CPU]


def placement(session: Any) -> dict[str, dict[str, int]]:
    """Return provider -> operator -> nodes, as the runtime assigned them; empty where it cannot tell (before 1.24).

    A session of one provider has all its nodes there, whatever the runtime tells; how many is not known then.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        providers = session.get_providers()
        return {providers[0]: {"nodes": 1}} if len(providers) == 1 else {}
    found: dict[str, Counter[str]] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        found.setdefault(subgraph.ep_name, Counter()).update(node.op_type for node in subgraph.get_nodes())
    return {provider: dict(operators) for provider, operators in found.items()}


# What a run says whose output is of another size than its buffer; the second is onnxruntime's before 1.27.
OTHER_SIZE = ("pre-allocated", "shape verification failed")


def sizes_change(error: Exception) -> bool:
    """Whether a run failed because the sizes of its outputs change from run to run (NonZero)."""
    return any(words in str(error) for words in OTHER_SIZE)


class BoundSession:
    """A session with its inputs and outputs bound: ``run`` moves no data and makes no Python objects.

    On NVIDIA GPUs both lie in device memory at fixed addresses (which a CUDA graph needs), elsewhere in the host's.
    """

    def __init__(self, session: Any, feeds: Mapping[str, np.ndarray], provider: str, device_id: int) -> None:
        memory = by_name(provider).memory
        self.memory = (memory, 0 if memory == "cpu" else device_id)
        self._session = session
        self._binding = session.io_binding()
        self._feeds = feeds
        self._inputs = {name: ort.OrtValue.ortvalue_from_numpy(array, *self.memory) for name, array in feeds.items()}
        self._outputs: list[Any] = []
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, *self.memory)

    def keep_outputs(self) -> None:
        """After the first run: bind each tensor output to a buffer of the size that it turned out to have."""
        self._outputs = list(self._binding.get_outputs())
        for output, value in zip(self._session.get_outputs(), self._outputs):
            if value.is_tensor() and value.device_name().lower() == self.memory[0]:
                self._binding.bind_ortvalue_output(output.name, value)

    def run_allocating(self) -> None:
        """As ``run``, for outputs whose sizes change from run to run: the runtime allocates them anew each time."""
        self._binding.clear_binding_outputs()  # what a run left there is a buffer for the next one
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, *self.memory)
        self._session.run_with_iobinding(self._binding)

    def not_a_number(self) -> list[str]:
        """After a run: return the names of the float outputs that hold nothing but NaN and infinity."""
        found = []
        for output, value in zip(self._session.get_outputs(), self._binding.get_outputs()):
            if output.type in ("tensor(float)", "tensor(float16)", "tensor(double)"):
                array = value.numpy()
                if array.size and not bool(np.isfinite(array).any()):
                    found.append(output.name)
        return found

    def run(self) -> None:
        """Do one inference and wait until its outputs are there."""
        self._session.run_with_iobinding(self._binding)

    def to_device(self) -> None:
        """Copy the inputs from the host into their bound places."""
        for name, array in self._feeds.items():
            self._inputs[name].update_inplace(array)

    def to_host(self) -> None:
        """Copy the outputs of the last run to the host."""
        for value in self._outputs:
            value.numpy()


Placement = Mapping[str, Mapping[str, int]]  # provider -> operator -> nodes


def check_placement(model: str, device: Device, loaded: Mapping[str, Any], allow_fallback: bool) -> None:
    """Refuse a session that does not run where it was asked to.

    Args:
        model: The model's name.
        device: Where it was asked to run.
        loaded: The worker's answer: ``providers`` of the session, ``placement`` of its nodes.
        allow_fallback: Whether nodes may lie elsewhere.

    Raises:
        DeviceError: The provider was dropped, or nodes lie elsewhere and may not.
    """
    if device.provider not in loaded["providers"]:
        raise DeviceError(
            f"device '{device.name}' could not be used: ONNX Runtime dropped {device.provider} when it loaded {model}",
            hint="run `kdexport doctor`: it shows what is missing and the command that fixes it",
        )
    fell_back = fallback(device.provider, loaded["placement"])
    if fell_back and not allow_fallback:
        raise DeviceError(
            f"{model} does not run whole on '{device.name}': {fell_back}",
            hint="give --allow-fallback to measure it as it is",
        )


def fallback(provider: str, placement: Placement) -> str:
    """Say which nodes run on other providers: ``3 of 40 nodes fell back to CPUExecutionProvider (Gather)``."""
    elsewhere = {other: operators for other, operators in placement.items() if other != provider}
    if not elsewhere:
        return ""
    total = sum(sum(operators.values()) for operators in placement.values())
    count = sum(sum(operators.values()) for operators in elsewhere.values())
    names = sorted({operator for operators in elsewhere.values() for operator in operators})
    return f"{count} of {total} nodes fell back to {', '.join(sorted(elsewhere))} ({', '.join(names)})"


def shares(placement: Placement) -> dict[str, float] | None:
    """Return provider -> share of nodes; None where the runtime cannot tell."""
    nodes = {provider: sum(operators.values()) for provider, operators in placement.items()}
    total = sum(nodes.values())
    return {provider: count / total for provider, count in nodes.items()} if total else None
