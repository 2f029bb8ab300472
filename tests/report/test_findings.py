"""Sentences that claim no more than their intervals do."""

import dataclasses

import pytest

from kdexport.report.card import card
from kdexport.report.findings import gain_in_words
from kdexport.report.html import html
from kdexport.report.markdown import markdown
from kdexport.report.stage import report


@pytest.mark.parametrize(
    ("delta", "interval", "message"),
    [
        (
            0.004,
            (-0.003, 0.011),
            "Distillation gained +0.4 points over the same student trained on labels "
            "(95 % interval −0.3 to +1.1, 360 test samples): not shown to help.",
        ),
        (0.02, (0.01, 0.03), "+1.0 to +3.0, 360 test samples): shown to help."),
        (-0.02, (-0.03, -0.01), "Distillation lost 2.0 points"),
        (-0.02, (-0.03, -0.01), "shown to hurt."),
        (0.0, (-0.01, 0.01), "not shown to help."),
        (0.01, (-0.0004, 0.02), "(95 % interval −0.04 to +2.0"),
        (0.01, None, "without an interval that shows nothing"),
    ],
)
def test_what_distillation_gained(delta, interval, message: str) -> None:
    assert message in gain_in_words(delta, interval, 360)


def test_int8_that_is_slower_is_reported_as_such(build) -> None:
    findings = report([build.bench()]).findings
    assert any(
        line.startswith("student.int8 is slower than student on cpu of laptop, batch 1 (0.76× the speed")
        for line in findings
    )
    assert any("its file is 3.1× smaller" in line for line in findings)


def test_devices_that_agree_share_a_sentence_and_others_do_not(build) -> None:
    quick = {name: (a, k, 0.02 if "int8" in name else ms, p) for name, (a, k, ms, p) in build.DIGITS.items()}
    alike = [build.bench(), build.bench(build.machine("pi"), slowdown=3)]
    told = [line for line in report(alike).findings if line.startswith("student.int8 is")]
    assert told == ["student.int8 is slower than student on all 2 devices (0.76× the speed); its file is 3.1× smaller."]
    told = [
        line
        for line in report([build.bench(), build.bench(build.machine("pi"), models=quick)]).findings
        if line.startswith("student.int8 is")
    ]
    assert [line.split()[2] for line in told] == ["slower", "faster"]


def test_a_model_that_ran_only_partly_on_its_device(build) -> None:
    bench = build.bench()
    partly = dataclasses.replace(
        bench.measurements[1],
        provider="CUDAExecutionProvider",
        device="cuda",
        placement={"CUDAExecutionProvider": 0.75, "CPUExecutionProvider": 0.25},
    )
    findings = report([dataclasses.replace(bench, measurements=(*bench.measurements, partly))]).findings
    assert "student ran only partly on cuda of laptop: 25 % on CPUExecutionProvider of its nodes." in findings
    assert "No speed-up on cuda of laptop at batch 1: teacher was not measured there." in findings


def test_what_has_no_accuracy_is_named(build) -> None:
    models = {"a": (0.9, 100.0, 1.0, 1), "b": (None, 50.0, 0.5, 1)}
    assert "Accuracy was not measured for b." in report([build.bench(models=models)]).findings


def test_what_was_left_out_and_what_it_was_tested_on_are_told(build) -> None:
    bench = build.bench()
    cut = "stratified 0.2 of all, seed 3; the given nets.pt may have been trained on these samples"
    warning = f"the test samples are cut from the data ({cut.partition(';')[0]}): a score is then too high"
    made = report(
        [
            dataclasses.replace(
                bench, tested_on=cut, data_warnings=(warning,), left_out={"student.fp16": "too many bins"}
            )
        ]
    )
    assert made.findings[:2] == (
        "student.fp16 was left out: too many bins.",
        "The test samples are cut from the data (stratified 0.2 of all, seed 3): a score is then too high.",
    )
    text = card(made)
    assert "split (stratified 0.2 of all, seed 3; the given nets.pt may have been" in text
    assert "\n- student.fp16 was left out: too many bins\n" in text
    assert "too many bins" in html(made)
    some = tuple(dataclasses.replace(item, quantized=(3, 4)) if "int8" in item.name else item for item in bench.models)
    for shown in (html, markdown):
        assert shown(report([dataclasses.replace(bench, models=some)])).count("3 of 4 operators quantized") == 2
    quiet = report([dataclasses.replace(bench, tested_on="source: its validation split")])
    assert "Tested on its validation split." in quiet.findings
    assert not any("Tested on" in line for line in report([dataclasses.replace(bench, tested_on="source")]).findings)


def test_nan_that_the_proof_counts_as_equal_is_told(build) -> None:
    bench = build.bench()
    models = [
        dataclasses.replace(model, parity=dataclasses.replace(model.parity, nan_samples=3))
        if model.name == "student"
        else model
        for model in bench.models
    ]
    findings = report([dataclasses.replace(bench, models=tuple(models))]).findings
    told = [line for line in findings if "NaN" in line]
    assert len(told) == 1
    assert told[0].startswith("student gives NaN for 3 of the ")
