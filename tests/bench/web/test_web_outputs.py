"""What a page's outputs are held against, and their score. Without a browser: the page is played."""

import base64
import dataclasses
import json
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from kdexport.bench.stage import BenchRequest
from kdexport.bench.web import outputs, page_pack, recording, runtime, site
from kdexport.bench.web.recording_form import Output
from kdexport.cli import bench_pack, bench_serve
from kdexport.cli.console import Console
from kdexport.data.samples import Dataset, Split
from kdexport.errors import KDExportError
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.describe import describe_file

from .test_web_serve import recorded, result

SAMPLES = 130


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((SAMPLES, 64)).astype(np.float32), rng.integers(0, 10, SAMPLES)
    test = Split((x,), y)
    return Dataset("random", ("x",), tuple("0123456789"), test, test, test, Preprocessing("none"), {})


@pytest.fixture(scope="module")
def request_(models, quick, data, tmp_path_factory) -> BenchRequest:
    folder = tmp_path_factory.mktemp("runtime")
    for name in runtime.FILES:
        (folder / name).write_bytes(name.encode())
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    settings = quick.model_copy(update={"web_runtime": str(folder), "devices": ("web:wasm",), "batch_sizes": (1,)})
    return BenchRequest([describe_file(models / "a.onnx")], settings, "one", dataset=data)


@pytest.fixture(scope="module")
def built(request_) -> site.Site:
    return site.build(request_, "s1", sends=True)


def given(calls, failure=None) -> dict:
    """What a page sends that got these outputs."""
    made = [[{"name": "y", "type": one.dtype.name, "dims": list(one.shape),
              "data": base64.b64encode(one.tobytes()).decode()} for one in call] for call in calls]  # fmt: skip
    return {"failure": failure, "calls": made}


def measured(built: site.Site, compared: dict):
    document = recorded(result(compared=compared))
    (one,) = recording.bench_of(
        recording.read(json.dumps(document), built.document), built.document, checks=built.checks
    ).measurements
    return one


def page_answers(built: site.Site, model) -> list[list[np.ndarray]]:
    """Run what a page would: the files that the plan names, in another session."""
    session = onnxruntime.InferenceSession(str(model))
    (plan,) = built.document["models"]
    calls = []
    for (item,) in plan["compared"]:
        assert (item["name"], item["type"]) == ("x", "float32")
        x = np.frombuffer(built.files[item["url"]], np.float32).reshape(item["dims"])
        calls.append(session.run(None, {"x": x}))
    return calls


def test_a_device_that_answers_alike_has_this_machines_score_of_these_samples(built, data, models) -> None:
    calls = page_answers(built, models / "a.onnx")
    assert [len(call[0]) for call in calls] == [10] * 10
    one = measured(built, given(calls))
    assert one.parity is not None
    assert (one.parity.max_abs, one.parity.argmax_agreement, one.parity.passed) == (0.0, 1.0, True)
    assert (one.parity.samples, one.parity.reference) == (100, "onnxruntime-cpu")
    split = data.test.spread(100)
    session = onnxruntime.InferenceSession(str(models / "a.onnx"))
    accuracy = (session.run(None, {"x": split.inputs[0]})[0].argmax(1) == split.labels).mean()
    assert one.score is not None
    assert one.score.value == pytest.approx(float(accuracy))
    assert one.score.ci95[0] < accuracy < one.score.ci95[1]
    assert not any("outputs on this device" in text for text in one.warnings)
    # The labels stay here: no file that is handed out holds them, in any width.
    for kind in (np.uint8, np.int32, np.int64, np.float32):
        held = np.asarray(split.labels).astype(kind).tobytes()
        assert not any(isinstance(content, bytes) and held in content for content in built.files.values())
    check = built.checks["a"]
    assert outputs.summary("a", "web:wasm", one.parity, one.score, check) == (
        "a on web:wasm: worst difference 0 of the largest value, argmax equal in 100 of 100, against ONNX Runtime "
        f"here; accuracy of these samples {100 * accuracy:.1f} % there, {100 * accuracy:.1f} % here"
    )


def test_a_device_that_answers_otherwise_is_told_with_how_far(built, models) -> None:
    calls = page_answers(built, models / "a.onnx")
    largest = max(float(np.abs(call[0]).max()) for call in calls)
    wrong = [[call[0].copy()] for call in calls]
    wrong[3][0][4, int(wrong[3][0][4].argmin())] = largest + 1
    one = measured(built, given(wrong))
    step = largest + 1 - float(calls[3][0][4].min())
    assert one.parity.max_abs == pytest.approx(step)
    assert one.parity.max_rel == pytest.approx(step / largest)
    assert (one.parity.passed, one.parity.argmax_agreement) == (False, 0.99)
    assert one.warnings[0].startswith("its outputs on this device are not ONNX Runtime's on a CPU: worst difference")
    assert "argmax equal in 99 of 100" in one.warnings[0]
    nan = [[np.full_like(call[0], np.nan)] for call in calls]
    assert "NaN or infinite elsewhere" in measured(built, given(nan)).warnings[0]
    for other in ([[call[0][:, :9]] for call in calls], calls[:3], [[call[0].astype(np.float16)] for call in calls]):
        one = measured(built, given(other))
        assert one.parity is one.score is None
        assert "other shapes or types" in one.warnings[0]
    one = measured(built, given([], "out of memory"))
    assert one.parity is one.score is None
    assert one.warnings[0] == "its outputs on this device are not compared: out of memory"


@pytest.mark.parametrize(
    "change",
    [{"data": "AAAA"}, {"data": "@@@@"}, {"dims": [10, -10]}, {"type": "str"}, {"dims": [1] * 17}, {"more": 1},
     {"data": "A" * 2**21}],
)  # fmt: skip
def test_outputs_that_are_none_are_refused(built, models, change) -> None:
    compared = given(page_answers(built, models / "a.onnx"))
    compared["calls"][0][0] |= change
    with pytest.raises(KDExportError, match=r"not of its form: results\.0\.compared"):
        measured(built, compared)


def test_a_packed_page_holds_what_its_outputs_are_held_against_and_no_labels(
    request_, built, models, tmp_path, capsys
) -> None:
    bench_pack.pack(request_, tmp_path / "p.zip", Console(json=False, quiet=False, verbose=False, stdout=sys.stdout))
    assert "It holds 100 samples of the data without their labels" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        plan = json.loads(archive.read("plan.json"))
    calls = page_answers(built, models / "a.onnx")
    calls[0][0] = calls[0][0] + np.float32(0.5)
    saved = {**recorded(result(compared=given(calls))), "session": plan["session"], "plan": plan}
    for change in (
        {"model_files": "none"}, {"model_files": [1]}, {"model_files": []}, {"provider_options": 3, "models": None},
    ):  # fmt: skip
        with pytest.raises(KDExportError, match="not as kdexport writes it"):
            recording.from_file({**saved, "plan": {**plan, **change}})
    (one,) = recording.from_file(saved).measurements
    assert one.parity.max_abs == pytest.approx(0.5, rel=1e-5)
    assert (one.parity.samples, one.parity.argmax_agreement, one.parity.passed) == (100, 1.0, False)
    assert one.score is None
    assert page_pack.pack(dataclasses.replace(request_, dataset=None), tmp_path / "q.zip").samples == 0


def test_without_data_the_timed_inputs_serve_and_what_is_too_large_is_told(request_, models, tmp_path, data) -> None:
    bare = site.build(dataclasses.replace(request_, dataset=None), "s1", sends=True)
    (call,) = page_answers(bare, models / "a.onnx")
    one = measured(bare, given([call]))
    assert (one.parity.samples, one.parity.passed, one.score) == (1, True, None)
    # Data of other networks, and an output of 4 MB a sample.
    other = Split((np.zeros((20, 3), np.float32),), np.zeros(20, np.int64))
    unfit = dataclasses.replace(data, train=other, val=other, test=other)
    built = site.build(dataclasses.replace(request_, dataset=unfit), "s1", sends=True)
    assert built.checks["a"].score is None
    assert "are not scored: " in built.document["warnings"]["a"][-1]
    ends = [helper.make_tensor_value_info("x", 1, [1])], [helper.make_tensor_value_info("y", 1, [1_000_000])]
    held = [numpy_helper.from_array(np.array([1_000_000]), "shape")]
    graph = helper.make_graph([helper.make_node("Expand", ["x", "shape"], ["y"])], "g", *ends, held)
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    built = site.build(dataclasses.replace(request_, dataset=None, models=[describe_file(path)]), "s1", sends=True)
    assert not built.checks
    assert built.document["models"][0]["compared"] == []
    assert built.document["warnings"]["large"] == [
        "its outputs on a device are not compared: they are too large to send"
    ]


def test_all_models_get_the_same_samples_as_many_as_the_slowest_and_the_widest_allow(models, data) -> None:
    a, b = (describe_file(models / f"{name}.onnx") for name in "ab")
    fed = {"x": np.ones((1, 64), np.float32)}
    for macs, count in ((2 * 10**9, 50), (10**12, 1), (None, 100)):
        slow = dataclasses.replace(b, macs=macs)
        found = outputs.checks([(a, models / "a.onnx", fed), (slow, models / "b.onnx", fed)], data)
        assert [check.samples for check, _ in found.values()] == [count] * 2
    wide = Split((np.zeros((130, 2**17), np.float32),), np.zeros(130, np.int64))  # 512 KiB a sample
    unfit = dataclasses.replace(data, test=wide)
    (check, told), _ = outputs.checks([(a, models / "a.onnx", fed), (b, models / "b.onnx", fed)], unfit).values()
    assert check.score is None
    assert "not scored" in told


def test_a_choice_that_rounding_decides_is_no_difference() -> None:
    here = [(np.tile(np.array([[1.0, 0.9999]], np.float32), (150, 1)),)]
    there = [(here[0][0].copy(),)]
    there[0][0][0] = 0.9999, 1.0
    parity, wrong = outputs.held_against(here, there, "fp32", 150)
    assert (parity.passed, wrong) == (True, None)
    assert parity.argmax_agreement == pytest.approx(149 / 150)
    there[0][0][:3] = 0.9999, 1.0
    assert "argmax equal in 147 of 150" in outputs.held_against(here, there, "fp32", 150)[1]
    assert outputs.held_against(here, there, "fp32", 150, chooses=False)[1] is None


def test_outputs_of_every_type_go_over_as_they_are() -> None:
    for kind in ("float16", "float64", "int8", "int64", "uint16", "bool"):
        array = np.array([[0, 1, 1]], kind)
        assert (Output.model_validate_json(Output.of("y", array).model_dump_json()).array() == array).all()


def test_who_has_the_address_is_told_to_have_the_samples(built) -> None:
    from kdexport.bench.web.serve import Address

    text = bench_serve.announcement(Address(("http://127.0.0.1:1/x/",), 1, True, None, True), color=False, encoding="")
    assert "samples of the data without their labels" in text
