"""The report tells what was tried for a file whose precision measured time has chosen, and where."""

import dataclasses

from kdexport.report.html import html
from kdexport.report.markdown import markdown
from kdexport.report.stage import report
from kdexport.results import MeasuredPrecision, TimedOn, TriedPrecision


def test_what_was_tried_stands_in_the_report(build) -> None:
    here = build.machine()
    on = TimedOn("cpu", 1, 1, "elsewhere", "Intel Xeon <b>", ("avx2", "avx512_vnni"))
    tried = (
        TriedPrecision("fp32", "as it is", (0, 4), 1.0, None, True),
        TriedPrecision("int8", "every operator | all", (4, 4), 0.8, (0.75, 0.85), True, "accuracy 98.1 %"),
        TriedPrecision("mixed 1", "by the profiles", (2, 4), 1.5, (1.4, 1.6), True),
        TriedPrecision("fp16", "as a whole", None, None, None, None, "could not be made"),
    )
    chosen = MeasuredPrecision("mixed 1", on, tried, {"a": "int8", "b": "fp32"})
    benched = build.bench()
    name = "student.int8"
    models = [
        dataclasses.replace(one, name="student.auto", precision="auto", measured_precision=chosen)
        if one.name == name
        else one
        for one in benched.models
    ]
    measurements = [
        dataclasses.replace(one, model="student.auto") if one.model == name else one for one in benched.measurements
    ]
    benched = dataclasses.replace(benched, models=tuple(models), measurements=tuple(measurements))
    made = report([benched])
    page, text = html(made), markdown(made)
    for shown in (page, text):
        assert "cpu, 1 thread, batch 1 (Intel Xeon" in shown
        assert "with VNNI" in shown
        assert "1.50×" in shown
        assert "1.40–1.60×" in shown
        assert "could not be made" in shown
    assert "<b>)" not in page
    assert "| int8 | every operator \\| all | 4 of 4 | 0.80× | 0.750–0.850× | accuracy 98.1 % |" in text
    assert "| mixed 1 | by the profiles | 2 of 4 | 1.50× | 1.40–1.60× | the file |" in text
    assert f"student.auto got its precision by time on {on.cpu}: another may be faster on {here.cpu}." in made.findings
