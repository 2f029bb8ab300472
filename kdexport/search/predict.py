"""Which candidates of a large space to measure next: a model of latency, fitted to what was measured, says.

The model is small and honest about itself: ridge regression or gradient boosting of the latency's logarithm, whichever
errs less when it is cross-validated; that error is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 6  # measured candidates that a model is fitted to, at least
FOLDS = 5


@dataclass(frozen=True)
class LatencyModel:
    """A fitted model, with how far it errs."""

    name: str
    error: float  # median relative error on candidates that it was not fitted to: 0.1 is 10 %
    samples: int
    _model: Any
    _scaler: tuple[NDArray[Any], NDArray[Any]]

    def predict(self, features: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """Return latencies in milliseconds."""
        mean, spread = self._scaler
        found: NDArray[np.float64] = np.exp(self._model.predict((np.asarray(features) - mean) / spread))
        return found


def fit_latency(features: Sequence[Sequence[float]], latency_ms: Sequence[float]) -> LatencyModel | None:
    """Fit a model of latency; None where too little was measured.

    Args:
        features: Of each measured candidate, ``Spaces.features``.
        latency_ms: Its median latency.
    """
    if len(latency_ms) < LEAST:
        return None
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict

    rows, logs = np.asarray(features, float), np.log(np.asarray(latency_ms, float))
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread[spread == 0] = 1.0
    scaled = (rows - mean) / spread
    models = {
        "ridge regression": Ridge(alpha=0.1),
        "gradient boosting": GradientBoostingRegressor(n_estimators=80, max_depth=3, random_state=0),
    }
    folds = KFold(min(FOLDS, len(logs)), shuffle=True, random_state=0)
    errors = {
        name: float(np.median(np.abs(np.expm1(cross_val_predict(model, scaled, logs, cv=folds) - logs))))
        for name, model in models.items()
    }
    best = min(errors, key=lambda name: errors[name])
    return LatencyModel(best, errors[best], len(logs), models[best].fit(scaled, logs), (mean, spread))


def choose(predicted: NDArray[np.float64], limit_ms: float, count: int, rng: np.random.Generator) -> list[int]:
    """Return the places of the candidates to measure next.

    Half of them are the slowest that are predicted to fit, for at equal cost the larger network scores better; half are
    any that may fit, so that the model learns where it errs. Where too few may fit, the fastest follow.
    """
    order = np.argsort(predicted)
    fits = [int(place) for place in order if predicted[place] <= limit_ms]
    chosen = fits[::-1][: (count + 1) // 2]
    others = [int(place) for place in order if predicted[place] <= 1.3 * limit_ms and int(place) not in chosen]
    chosen += [others[place] for place in rng.permutation(len(others))[: count - len(chosen)]]
    rest = (int(place) for place in order if int(place) not in chosen)
    while len(chosen) < count and (place := next(rest, None)) is not None:
        chosen.append(place)
    return chosen
