"""What is measured apart from latency, after all timing is over: energy, throughput, copies, shares of the compute.

It has a process of its own: nothing here touches a latency figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdexport.bench import energy
from kdexport.bench.plan import Condition, Settings
from kdexport.bench.process import Child, ChildError
from kdexport.bench.providers import by_name
from kdexport.errors import KDExportError
from kdexport.progress import Progress

ENERGY_SECONDS = 2.0  # RAPL counts every millisecond, NVML every 100
STREAM_SECONDS = 0.3
STREAM_REPEATS = 3
TRANSFER_RUNS = 50
PROFILE_RUNS = 20


@dataclass(frozen=True)
class Extras:
    """None where nothing was asked for, or the machine does not tell."""

    energy_mj: float | None = None
    compute_share: dict[str, float] | None = None
    throughput_by_streams: dict[str, float] | None = None
    transfer_ms: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()  # what was to be measured and could not be


def measure(
    label: str,
    task: Mapping[str, Any],
    condition: Condition,
    settings: Settings,
    meter: energy.Meter | None,
    providers: int,
    progress: Progress,
) -> Extras:
    """Measure what the settings ask for beyond latency.

    Args:
        label: The model's name.
        task: What the worker needs to load and feed the model.
        condition: Device and threads.
        settings: What is asked for.
        meter: What reads the energy; None leaves it out.
        providers: How many providers the model's nodes lie on; from two on, their shares of the time are found out.
        progress: Where a failure is told: it costs the extra, not the latency that is known already.

    Returns:
        What was measured; where the meter fails it is all but the energy, where the worker fails it is nothing.
    """
    on_gpu = by_name(condition.device.provider).memory != "cpu"
    streams = tuple(count for count in settings.streams if count > 1)
    if not (meter or streams or on_gpu or providers > 1):
        return Extras()
    try:
        with Child(label, settings.timeout_s) as child:
            child.ask(do="load", **task)
            child.ask(do="prepare", **task)
            share = child.ask(do="profile", runs=PROFILE_RUNS, **task)[0]["shares"] if providers > 1 else None
            transfers = child.ask(do="transfers", runs=TRANSFER_RUNS)[0] if on_gpu else None
            energy_mj, warnings = _energy(child, meter)
            for warning in warnings:
                progress.warn(f"{label}: {warning}")
            return Extras(
                energy_mj=energy_mj,
                compute_share=share,
                throughput_by_streams=_streams(child, task, streams) or None,
                transfer_ms={key: transfers[key] for key in ("host_to_device", "device_to_host")}
                if transfers
                else None,
                warnings=warnings,
            )
    except (ChildError, KDExportError) as error:
        warning = f"energy, throughput and copies could not be measured: {error}"
        progress.warn(f"{label}: {warning}")
        return Extras(warnings=(warning,))


def _energy(child: Child, meter: energy.Meter | None) -> tuple[float | None, tuple[str, ...]]:
    """Return the millijoules per inference and what went wrong; a worker that fails raises ChildError."""
    if meter is None:
        return None, ()

    def run() -> int:
        return int(child.ask(do="sustain", seconds=ENERGY_SECONDS)[0]["runs"])

    try:
        return energy.per_run_mj(meter, run), ()
    except ChildError:
        raise
    except Exception as error:  # noqa: BLE001 - a command or a driver that fails now costs the energy alone
        return None, (f"the energy could not be measured: {error}",)


def _streams(child: Child, task: Mapping[str, Any], streams: tuple[int, ...]) -> dict[str, float]:
    found = {}
    for count in streams:
        rates = []
        for _ in range(STREAM_REPEATS):
            reply, _ = child.ask(do="streams", count=count, seconds=STREAM_SECONDS, **task)
            rates.append(reply["runs"] * task["batch_size"] / reply["seconds"])
        found[str(count)] = sorted(rates)[len(rates) // 2]
    return found
