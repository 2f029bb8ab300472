"""Where a model's nodes really run. A provider that was asked for and dropped is an error, never a quiet figure."""

from collections.abc import Mapping
from typing import Any

from kdexport.bench.plan import Device
from kdexport.errors import DeviceError

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
            hint="run `kdexport doctor`: it shows what is missing and the command that mends it",
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


def shares(placement: Placement) -> dict[str, float]:
    """Return provider -> share of nodes; empty where the runtime cannot tell."""
    nodes = {provider: sum(operators.values()) for provider, operators in placement.items()}
    total = sum(nodes.values())
    return {provider: count / total for provider, count in nodes.items()} if total else {}
