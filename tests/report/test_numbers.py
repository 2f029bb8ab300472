"""Pictures of predicted against true values: where the marks lie, and how many there are."""

import re

import numpy as np
import pytest

from kdexport.report.charts.marks import Mark
from kdexport.report.charts.predictions import MOST_POINTS, Panel, diagonal, draw_panels, in_words, thinned
from kdexport.report.charts.residuals import residuals, zero
from kdexport.tasks.regression import Regression

TRUE = np.linspace(10, 50, 41, dtype=np.float32)[:, None]


def panel(predicted, name="y"):
    (score,) = Regression().evaluate(predicted.astype(np.float32), TRUE, (name,), "test").per_target
    return Panel(name, ((Mark("student", 1, "circle"), score),))


def marks(drawn):
    """Return the centres of a picture's marks, without the legend's."""
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3"', str(drawn))
    return np.array([[float(x), float(y)] for x, y in found])


def draw(panels, points, reference, *, square, width=700):
    return draw_panels(
        panels, points, label="", width=width, across_title="true", up_title="predicted", reference=reference,
        square=square,
    )  # fmt: skip


def pairs(score):
    return list(zip(thinned(score.true), thinned(score.predicted), strict=True))


def test_what_is_right_lies_on_the_diagonal():
    right = draw([panel(TRUE)], pairs, diagonal, square=True)
    line = re.search(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)" class="limit"', str(right))
    x1, x2, y1, y2 = map(float, line.groups())
    places = marks(right)
    assert len(places) == 41
    np.testing.assert_allclose(places[:, 1], y1 + (places[:, 0] - x1) * (y2 - y1) / (x2 - x1), atol=0.2)
    wrong = marks(draw([panel(TRUE + 5)], pairs, diagonal, square=True))
    assert (np.diff(wrong[:, 0]) > 0).all()


def test_residuals_lie_around_zero():
    found = residuals(panel(TRUE + 5).models[0][1])
    assert found == [(pytest.approx(true), pytest.approx(5.0)) for true in TRUE[:, 0]]
    drawn = draw([panel(TRUE + np.where(TRUE > 30, 4, -4))], residuals, zero, square=False)
    height = float(re.search(r'y1="([\d.]+)" y2="[\d.]+" class="limit"', str(drawn))[1])
    assert (marks(drawn)[:, 1] < height).mean() == pytest.approx(20 / 41)  # too much lies above


def test_many_samples_are_thinned_and_panels_stand_side_by_side():
    assert len(thinned(range(10_000))) <= MOST_POINTS
    assert thinned([1.0, 2.0]) == [1.0, 2.0]
    both = [panel(TRUE), panel(TRUE, "z")]
    wide, narrow = (draw(both, pairs, diagonal, square=True, width=width) for width in (700, 350))
    sizes = [float(re.search(r'height="([\d.]+)"', str(drawn))[1]) for drawn in (wide, narrow)]
    assert sizes[1] > 1.5 * sizes[0]
    assert in_words(both) == "y: student MAE 0, R² 1.00; z: student MAE 0, R² 1.00"


def test_values_of_one_number_still_have_an_axis():
    flat = np.full_like(TRUE, 30.0)
    assert len(marks(draw([panel(flat)], residuals, zero, square=False))) == 41
