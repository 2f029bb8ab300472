"""What is measured apart from latency, after all timing is over: energy, throughput, copies, shares of the compute.

It has a process of its own: nothing here touches a latency figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdexport.bench import energy
from kdexport.bench.child import Child, ChildError
from kdexport.bench.plan import Case, Settings
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


def measure(
    label: str,
    task: Mapping[str, Any],
    case: Case,
    settings: Settings,
    meter: energy.Meter | None,
    providers: int,
    progress: Progress,
) -> Extras:
    """Measure what the settings ask for beyond latency.

    Args:
        label: The model's name.
        task: What the worker needs to load and feed the model.
        case: Device and threads.
        settings: What is asked for.
        meter: What reads the energy; None leaves it out.
        providers: How many providers the model's nodes lie on; from two on, their shares of the time are found out.
        progress: Where a failure is told: it costs the extra, not the latency that is known already.
    """
    on_gpu = case.device.name.partition(":")[0] in ("cuda", "tensorrt")
    streams = tuple(count for count in settings.streams if count > 1)
    if not (meter or streams or on_gpu or providers > 1):
        return Extras()
    try:
        with Child(label, settings.timeout_s) as child:
            child.ask(do="load", **task)
            child.ask(do="prepare", **task)
            share = child.ask(do="profile", runs=PROFILE_RUNS, **task)[0]["shares"] if providers > 1 else None
            transfers = child.ask(do="transfers", runs=TRANSFER_RUNS)[0] if on_gpu else None
            return Extras(
                energy_mj=_energy(child, meter),
                compute_share=share,
                throughput_by_streams=_streams(child, task, streams) or None,
                transfer_ms={key: transfers[key] for key in ("host_to_device", "device_to_host")}
                if transfers
                else None,
            )
    except ChildError as error:
        progress.warn(f"{label}: energy, throughput and copies could not be measured: {error}")
        return Extras()


def _energy(child: Child, meter: energy.Meter | None) -> float | None:
    if meter is None:
        return None
    return energy.per_run_mj(meter, lambda: int(child.ask(do="sustain", seconds=ENERGY_SECONDS)[0]["runs"]))


def _streams(child: Child, task: Mapping[str, Any], streams: tuple[int, ...]) -> dict[str, float]:
    found = {}
    for count in streams:
        rates = []
        for _ in range(STREAM_REPEATS):
            reply, _ = child.ask(do="streams", count=count, seconds=STREAM_SECONDS, **task)
            rates.append(reply["runs"] * task["batch_size"] / reply["seconds"])
        found[str(count)] = sorted(rates)[len(rates) // 2]
    return found
