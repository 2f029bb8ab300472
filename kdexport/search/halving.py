"""Successive halving: who trains on, decided by intervals.

Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization": many candidates
train a little, one of so many goes on to train longer. All follow the schedule of the full training and wait at its
checkpoints, so that a finalist's weights are those of its recipe run alone.

A candidate is out where its score is shown to be worse than the best one's: the 95 % interval of the difference, paired
sample by sample, lies below 0. Those that cannot be told from the best go on in the order of their scores as far as
there are places; equal scores go by latency. The best of those that are surely within the budget always goes on: what
is at its edge may prove to be over it once it is measured for longer, and then there would be nothing to ship.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from kdexport import figures, statistics
from kdexport.recipe import Search
from kdexport.results import Evaluation


@dataclass(frozen=True)
class Rung:
    """A point at which candidates are compared."""

    epochs: int  # that each has trained by then
    places: int  # how many go on


def rungs(search: Search, epochs: int, candidates: int) -> list[Rung]:
    """Return the points of comparison before the full training, for so many candidates.

    Args:
        search: The recipe's table.
        epochs: Of the full training.
        candidates: That begin to train.
    """
    finalists = search.finalists.count
    found: list[Rung] = []
    count = max(0, math.ceil(math.log(max(candidates, 1) / finalists, search.reduction) - 1e-9))
    places = candidates
    for step in range(count, 0, -1):
        at = max(search.min_epochs, round(epochs / search.reduction**step))
        places = max(finalists, math.ceil(places / search.reduction))
        if at >= epochs:
            break
        if found and found[-1].epochs >= at:
            found[-1] = Rung(found[-1].epochs, places)
        else:
            found.append(Rung(at, places))
    if found and found[-1].places > finalists:
        found[-1] = Rung(found[-1].epochs, finalists)
    return found


def decide(
    scored: Mapping[int, Evaluation],
    places: int,
    latency_ms: Mapping[int, float],
    labels: Mapping[int, str],
    sure: Set[int] = frozenset(),
) -> dict[int, str]:
    """Return who is out at a rung, by number, and why; all others go on.

    Args:
        scored: What each scores on the validation split, its values per sample with it.
        places: How many may go on.
        latency_ms: Of each.
        labels: What people read.
        sure: Those that are surely within the budget; the best of them is not out.
    """
    order = ranked(scored, latency_ms)
    best, out = order[0], {}
    rest = [best]
    for number in order[1:]:
        shown = worse(scored[best], scored[number])
        if shown is not None:
            out[number] = f"worse than {labels[best]} on validation: {shown}"
        else:
            rest.append(number)
    for number in rest[places:]:
        out[number] = f"no place left among {places}: not told from {labels[best]}, and scores less"
    best_sure = next((number for number in order if number in sure), None)
    if best_sure is not None and not sure & (scored.keys() - out.keys()):
        del out[best_sure]
    return out


def ranked(scored: Mapping[int, Evaluation], latency_ms: Mapping[int, float]) -> list[int]:
    """Return numbers, the best score first; of equal scores the fastest."""

    def rank(number: int) -> tuple[float, float, int]:
        score = scored[number].score
        return (-score.value if score.higher_is_better else score.value), latency_ms[number], number

    return sorted(scored, key=rank)


def worse(best: Evaluation, other: Evaluation) -> str | None:
    """Return in words by how much an evaluation is shown to be worse than another; None where it is not shown."""
    compared = statistics.paired_difference(best, other)
    if compared is None:
        return None
    delta, (low, high) = compared
    beyond = high < 0 if best.score.higher_is_better else low > 0
    if not beyond:
        return None
    if best.score.metric in ("accuracy", "mean_iou", "mean_average_precision"):
        return f"{figures.points(delta)} ({figures.points_interval((low, high))})"
    return f"{figures.signed_plain(delta)} ({figures.plain(low)} to {figures.plain(high)})"


def not_worse(scored: Mapping[str, Evaluation], best: str) -> list[str]:
    """Return the names that are not shown to be worse than the best one's."""
    return [name for name, evaluation in scored.items() if name == best or worse(scored[best], evaluation) is None]


def first_places(costs: Sequence[tuple[int, float, float]], places: int, sure: Set[int] = frozenset()) -> list[int]:
    """Return the numbers of the candidates that begin to train, where more are within the budget than there are places.

    Half of the places go to the largest networks (by parameters times multiply-accumulates), for within one budget they
    score best; half are spread evenly over the latencies of the others, for the fastest that scores alike is picked.
    At least one is surely within the budget, where any is.

    Args:
        costs: Number, latency in milliseconds and size of each.
        places: How many begin.
        sure: Those that are surely within the budget.
    """
    if len(costs) <= places:
        return [number for number, _, _ in costs]
    largest = sorted(costs, key=lambda cost: (-cost[2], cost[1], cost[0]))
    chosen = largest[: (places + 1) // 2]
    rest = sorted(largest[len(chosen) :], key=lambda cost: (cost[1], cost[0]))
    spread = places - len(chosen)
    chosen += [rest[round(index * (len(rest) - 1) / max(1, spread - 1))] for index in range(spread)]
    if sure and not sure & {number for number, _, _ in chosen}:
        chosen[-1] = next(cost for cost in largest if cost[0] in sure)
    return [number for number, _, _ in dict.fromkeys(chosen)]
