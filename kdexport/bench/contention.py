"""What other work on the machine did to the measured calls: which still count, and when none can be believed.

A worker marks the calls during which it waited for a core (``timing.watched``). They are left out. Where they are many,
those that remain are no fair sample (a long call hardly ever runs through), and a machine that is full slows even calls
that run through (shared caches, memory, clocks): the latencies stand with that said, and decide no speed-up.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdexport.bench.host import Surroundings
from kdexport.bench.plan import Condition

MANY_CALLS = 0.25  # ran beside other work: those that remain are no fair sample
MUCH_TIME = 0.5  # of the measuring went by in such calls
STOLEN_CORES = 0.05  # taken by the hypervisor: its waits cannot be told from a call's own time
CROWDED = 0.25  # busy cores beyond those that the machine has, the measured threads included


@dataclass(frozen=True)
class LeftOut:
    """What of one model's measuring does not count."""

    calls: int = 0
    waited_calls: int = 0  # during which other work had the core, whether they count or not
    all_calls: int = 0
    waited_ns: int = 0
    all_ns: int = 0

    @property
    def share(self) -> float:
        """Of the measured time that went by in such calls."""
        return self.waited_ns / self.all_ns if self.all_ns else 0.0

    def more(self, turns: Sequence[np.ndarray], counted: Sequence[np.ndarray]) -> "LeftOut":
        """Return this with another round's turns and what of them counts."""
        calls = np.concatenate(turns)
        return LeftOut(
            self.calls + calls.size - sum(kept.size for kept in counted),
            self.waited_calls + int((calls < 0).sum()),
            self.all_calls + calls.size,
            self.waited_ns - int(calls[calls < 0].sum()),
            self.all_ns + int(np.abs(calls).sum()),
        )


def undisturbed(turns: Mapping[str, Sequence[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Return the calls of one round that count, turn by turn.

    A turn in which some model had no undisturbed call is left out for all: turn *k* of each saw the same machine, and
    is compared. Where fewer than half of the turns remain, every call of the round counts.

    Args:
        turns: Model -> nanoseconds per call of each turn, negative where other work had the core.
    """
    longest = max((len(own) for own in turns.values()), default=0)
    good = [k for k in range(longest) if all((own[k] > 0).any() for own in turns.values() if k < len(own))]
    if 2 * len(good) < longest or any(not any(k < len(own) for k in good) for own in turns.values()):
        return {name: [np.abs(calls) for calls in own] for name, own in turns.items()}
    return {name: [own[k][own[k] > 0] for k in good if k < len(own)] for name, own in turns.items()}


def disturbance(found: LeftOut, surroundings: Sequence[Surroundings], condition: Condition) -> str | None:
    """Return in words why no speed-up is decided by what was measured; None where the machine was quiet enough."""
    count = max(len(surroundings), 1)
    other = sum(around.other_cores for around in surroundings) / count
    stolen = sum(around.stolen for around in surroundings) / count
    cores = os.cpu_count() or 1
    if found.share > MUCH_TIME or found.waited_calls > MANY_CALLS * found.all_calls:
        return f"other work took its core during {found.share:.0%} of the measured time"
    if stolen > STOLEN_CORES:
        return f"the hypervisor took {stolen:.2f} cores away"
    if other + condition.threads > cores + CROWDED:
        return f"other work kept {other:.1f} of {cores} cores busy"
    return None
