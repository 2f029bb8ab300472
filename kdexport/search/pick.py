"""Which file is picked: of those within the budget, the fastest whose score on validation is within one standard error
of the best one's, paired (the one-standard-error rule: Breiman et al. 1984, "Classification and Regression Trees").

The test split decides nothing, so its score of the pick is an honest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kdexport import figures, statistics
from kdexport.recipe import Budget
from kdexport.results import BenchResult, Evaluation, ModelFile
from kdexport.search.measure import Figures, misses
from kdexport.statistics import Z95


@dataclass(frozen=True)
class Finished:
    """One file of a finalist, measured and scored."""

    number: int  # of its trial
    precision: str
    file: ModelFile
    figures: Figures
    val: Evaluation
    test: Evaluation


@dataclass(frozen=True)
class Finals:
    """All finalists' files, measured together with the teacher: finals.json, for a database takes no such documents."""

    finalists: tuple[int, ...]  # trials
    bench: BenchResult
    teacher: tuple[Evaluation, Evaluation]  # on validation and on test
    files: tuple[Finished, ...]
    seconds: float  # of exporting, measuring and scoring


def choose(files: Sequence[Finished], budget: Budget, teacher: Evaluation) -> tuple[Finished | None, str]:
    """Return the file to ship and why; None where none is within the budget.

    Args:
        files: Of all finalists.
        budget: Of the search.
        teacher: What the teacher scores on validation.
    """
    cheap = [one for one in files if not misses(one.figures, budget)]
    good = [one for one in cheap if score_miss(one.val, teacher, budget)[0] <= 0]
    undecided = "" if good else "; its score is within its interval of the budget's, and beyond it by the figure"
    fits = good or [one for one in cheap if not _shown_beyond(one.val, teacher, budget)]
    if not fits:
        return None, ""
    ranked = sorted(fits, key=lambda one: (-goodness(one.val), one.figures.latency_ms))
    best = ranked[0]
    near = [one for one in ranked if one is best or _within_one_error(best.val, one.val)]
    chosen = min(near, key=lambda one: one.figures.latency_ms)
    latency = figures.ms(chosen.figures.latency_ms)
    if chosen.figures.disturbed:
        undecided += f"; {chosen.figures.disturbed}: bench picked/ again on a quiet machine"
    if len(files) == 1:
        return chosen, f"the only file that was trained in full, and it is within the budget, at {latency}{undecided}"
    if len(fits) == 1:
        return chosen, f"the only one of {len(files)} files that is within the budget, at {latency}{undecided}"
    if chosen is best and len(near) == 1:
        return chosen, f"the best score on validation of {len(fits)} files within the budget, at {latency}{undecided}"
    also = "" if chosen is best else f", within one standard error of the best ({best.file.name})"
    return chosen, f"the fastest of {len(near)} files that score alike on validation{also}: {latency}{undecided}"


def goodness(evaluation: Evaluation) -> float:
    """Return a score, negative where a lower one is better."""
    return evaluation.score.value if evaluation.score.higher_is_better else -evaluation.score.value


def _within_one_error(best: Evaluation, other: Evaluation) -> bool:
    compared = statistics.paired_difference(best, other)
    if compared is None:
        return goodness(other) >= goodness(best)
    delta, (low, high) = compared
    loss = -delta if best.score.higher_is_better else delta
    return loss <= (high - low) / (2 * Z95)


def score_miss(val: Evaluation, teacher: Evaluation, budget: Budget) -> tuple[float, str]:
    """Return by how much a score misses the budget, in its own unit (0 or less: it holds), and that in words."""
    found = [(0.0, "")]
    if budget.drop is not None:
        drop = goodness(teacher) - goodness(val)
        found.append((drop - budget.drop, f"drop {drop:.3g}, budget {budget.drop:g}"))
    if budget.min_score is not None:
        least = budget.min_score if val.score.higher_is_better else -budget.min_score
        found.append((least - goodness(val), f"score {val.score.value:.4g}, budget {budget.min_score:g}"))
    return max(found, key=lambda item: item[0])


def _shown_beyond(val: Evaluation, teacher: Evaluation, budget: Budget) -> bool:
    """Whether a score is beyond the budget with its whole 95 % interval."""
    better = val.score.higher_is_better
    if budget.drop is not None and (compared := statistics.paired_difference(teacher, val)) is not None:
        _, (low, high) = compared
        if (-high if better else low) > budget.drop:
            return True
    if budget.min_score is not None:
        low, high = val.score.ci95 or (val.score.value, val.score.value)
        return high < budget.min_score if better else low > budget.min_score
    return False
