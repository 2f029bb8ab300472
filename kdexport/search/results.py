"""What `kdexport search` hands over: search.json, whose schema is made from these classes.

``python -m kdexport.search.results`` writes ``search.schema.json`` anew; a test holds it fresh.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdexport import results
from kdexport.results import Interval, Score

SEARCH_SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("search.schema.json")

# How far a trial came: its candidate is over the budget, was left untrained, dropped at a rung, trained in full, or it
# failed; "open" while the search goes on.
Outcome = Literal["open", "over budget", "not trained", "dropped", "finalist", "picked", "failed"]


@dataclass(frozen=True)
class TrialFile:
    """One file of a candidate, in one precision."""

    precision: str
    size_bytes: int
    latency_ms: float  # median
    latency_ms_ci95: Interval | None
    speedup: float  # against the teacher
    speedup_ci95: Interval | None
    memory_mib: float | None
    trained: bool  # whether it was measured with trained weights, for longer; else before training
    within_budget: bool  # not shown to be over it
    untrained_latency_ms: float  # median, as it was measured before training
    val_score: Score | None = None  # of the file, on the validation split: what the pick goes by
    test_score: Score | None = None  # of the file, on the test split
    drop: float | None = None  # the teacher's score on the test split minus this one's, in the score's own unit
    drop_ci95: Interval | None = None  # paired


@dataclass(frozen=True)
class TrialRung:
    """What a candidate scores after some epochs."""

    epochs: int
    val_score: float
    seconds: float  # of training since the rung before


@dataclass(frozen=True)
class Trial:
    """One candidate."""

    number: int  # of the Optuna trial
    name: str  # "Student(width=16)"
    outcome: Outcome
    why: str  # it is out, or failed
    model: str
    args: dict[str, Any]
    prune: dict[str, Any]
    image_size: int | None
    method: dict[str, Any]  # what differs from the recipe's [distill]
    parameters: int | None
    macs: int | None
    files: tuple[TrialFile, ...]
    rungs: tuple[TrialRung, ...]
    directory: str | None  # of its training, relative to the search's


@dataclass(frozen=True)
class SearchPick:
    """The student to ship."""

    trial: int
    name: str
    precision: str
    why: str
    directory: str  # a run directory, relative to the search's


@dataclass(frozen=True)
class Nearest:
    """Where nothing is within the budget: what misses it by the least."""

    trial: int
    name: str
    by: float  # 0.35 is 35 % beyond the limit
    misses: str  # in words


@dataclass(frozen=True)
class PredictedLatency:
    """The model of latency that chose what to measure next."""

    kind: str  # "ridge regression", "gradient boosting"
    error: float  # median relative error, cross-validated: 0.1 is 10 %
    samples: int  # measured candidates that it was fitted to


@dataclass(frozen=True)
class Seconds:
    """Where the time went, over all processes."""

    teacher: float
    measuring: float  # before training: building, exporting and measuring
    training: float
    final: float  # exporting, measuring and scoring the finalists

    @property
    def measuring_share(self) -> float | None:
        """Share of measuring in all of it."""
        total = self.teacher + self.measuring + self.training + self.final
        return (self.measuring + self.final) / total if total else None

    DERIVED = ("measuring_share",)


@dataclass(frozen=True)
class SearchResult:
    """search.json."""

    schema: int = field(default=SEARCH_SCHEMA, kw_only=True)
    name: str
    created: str  # ISO 8601, UTC
    budget: dict[str, float]
    metric: str  # the score's: "accuracy", "mean_iou"
    higher_is_better: bool
    candidates: int | None  # in all spaces together; None: without end
    trials: tuple[Trial, ...]
    pick: SearchPick | None
    nearest: Nearest | None
    latency_model: PredictedLatency | None
    seconds: Seconds
    teacher_latency_ms: float | None
    teacher_val_score: Score | None
    teacher_test_score: Score | None
    final: dict[str, Any] | None  # teacher and finalists measured together, scored on the test split: as bench.json
    recipe: dict[str, Any] | None


def schema() -> dict[str, Any]:
    """Return the JSON Schema of search.json."""
    from pydantic import TypeAdapter

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(SearchResult).json_schema()}


def from_json(document: dict[str, Any]) -> SearchResult:
    """Return what search.json holds.

    Raises:
        pydantic.ValidationError: It is none.
    """
    return results.from_json(SearchResult, document)


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
