"""The model card, read as a model hub reads it."""

import dataclasses
import re

import pytest

from kdexport.recipe import Require
from kdexport.report.card import card
from kdexport.report.stage import report

HOSTILE = 'x"\n---\ninjected: true\n'


def test_a_hub_reads_its_metrics(build) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the hub's own reader is not installed")
    made = report([build.bench()], Require(max_drop=0.03))
    read = hub.ModelCard(card(made), ignore_metadata_errors=False)
    assert read.data.library_name == "onnx"
    assert read.data.pipeline_tag == "image-classification"
    assert "knowledge-distillation" in read.data.tags
    student = next(model for model in made.models if model.name == "student")
    metrics = {result.metric_type: result for result in read.data.eval_results}
    assert metrics["accuracy"].metric_value == pytest.approx(student.accuracy, abs=1e-6)
    assert metrics["accuracy"].dataset_name == "digits"
    assert metrics["accuracy"].dataset_split == "test"
    assert metrics["latency"].metric_name == "Median latency in ms, cpu of laptop, batch 1, 1 thread"


def test_its_words(build) -> None:
    text = card(report([build.bench()], Require(max_drop=0.03)))
    for heading in ("Intended use", "How to use", "Training data", "How it was made", "Evaluation", "Limits"):
        assert f"\n## {heading}\n" in text
    assert "Distilled from a teacher with soft\\_targets (weight 0.9, temperature 4), label weight 0.1" in text
    assert "not shown to help" in text
    assert "Weakest on the class" in text


def test_its_snippet_is_python(build) -> None:
    text = card(report([build.bench()]))
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(snippet, "snippet", "exec")
    assert 'session.run(None, {"input": x0})' in snippet
    assert "np.zeros([1, 8, 8, 1], np.uint8)" in snippet


def test_no_card_where_nothing_is_to_ship(build) -> None:
    assert card(report([build.bench()], Require(max_latency_ms=0.001))) is None


def test_a_name_cannot_break_out_of_the_front_matter(build) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the hub's own reader is not installed")
    recipe = {**build.RECIPE, "data": {"source": f"npz:/home/someone/{HOSTILE}.npz"}}
    made = dataclasses.replace(report([build.bench(recipe=recipe)], Require()), name=HOSTILE)
    read = hub.ModelCard(card(made))
    assert "injected" not in read.data.to_dict()
    assert read.data.eval_results[0].dataset_name == f"npz:{HOSTILE}.npz"
    assert "/home/someone" not in card(made)
