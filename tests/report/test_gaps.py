"""What was not measured is null, in any mixture: the report is made all the same, and says n/a rather than 0."""

import dataclasses
import random

import pytest

from kdexport.recipe import Require
from kdexport.report.card import card
from kdexport.report.html import html
from kdexport.report.markdown import markdown, pictures_of
from kdexport.report.publish import github, junit
from kdexport.report.stage import report
from kdexport.results import Memory


def with_gaps(bench, chance: random.Random):
    """Take away figures at random."""

    def gone() -> bool:
        return chance.random() < 0.4

    models = []
    for model in bench.models:
        changes = {name: None for name in ("parameters", "macs", "opset", "parity", "teacher_agreement") if gone()}
        if gone():
            changes |= {"evaluation": None}
            changes |= {"score": None} if gone() else {}
        elif gone():
            changes |= {"evaluation": dataclasses.replace(model.evaluation, confusion=(), per_sample=(), per_class=())}
        models.append(dataclasses.replace(model, **changes, inputs={} if gone() else model.inputs))
    measurements = []
    for item in bench.measurements:
        latency = item.latency_ms
        names = ("p50_ci95", "p90", "p95", "p99", "p99_ci95")
        latency = dataclasses.replace(latency, **{name: None for name in names if gone()})
        latency = dataclasses.replace(latency, quantiles=() if gone() else latency.quantiles)
        latency = dataclasses.replace(latency, rounds_p50=() if gone() else latency.rounds_p50)
        memory = Memory(None, None, None) if gone() else item.memory_mib
        energy = None if gone() else 1.5
        measurements.append(dataclasses.replace(item, latency_ms=latency, memory_mib=memory, energy_mj=energy))
    kept = [item for item in measurements if chance.random() < 0.8]
    training = tuple({key: line[key] for key in line if not gone()} for line in bench.training[:9])
    return dataclasses.replace(
        bench,
        models=tuple(models),
        measurements=tuple(kept),
        training=training,
        recipe=None if gone() else bench.recipe,
    )


@pytest.mark.parametrize("seed", range(12))
def test_gaps(build, seed: int) -> None:
    chance = random.Random(seed)
    benches = [
        with_gaps(build.bench(build.machine(name), conditions=(("cpu", 1, 1), ("cpu", 8, 1))), chance)
        for name in ("laptop", "pi")
    ]
    require = Require(
        max_drop=0.02 if chance.random() < 0.5 else None,
        max_memory_mib=60.0 if chance.random() < 0.5 else None,
        max_latency_ms=0.5,
        parity=chance.random() < 0.5,
        undecided=chance.choice(("pass", "fail")),
        prefer=chance.choice(("latency", "size", "accuracy")),
    )
    made = report(benches, require)
    for gate in made.gates:
        assert gate.value is not None or not gate.passed
    page = html(made)
    assert "nan" not in page.lower().replace("onan", "")
    assert ">None<" not in page
    pictures = pictures_of(made)
    for text in (markdown(made, pictures), github(made), junit(made), card(made) or "", *pictures.values()):
        assert "None" not in text.replace("session.run(None, ", "")
        assert "nan" not in text
