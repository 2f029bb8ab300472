"""The stage as a run sees it: files, proofs, and nothing made twice."""

import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

from kdexport.artifacts import RunDirectory
from kdexport.data.datasets import load_data
from kdexport.errors import ParityError, StorageError
from kdexport.export import stage
from kdexport.models.loading import load_model
from kdexport.progress import Silent
from kdexport.stage_cache import mark_done


@pytest.fixture(scope="module")
def made(make_run, tmp_path_factory):
    recipe, distilled, directory = make_run(tmp_path_factory.mktemp("run"), quantize=["int8", "int8-dynamic", "fp16"])
    return recipe, distilled, directory, stage.export(recipe, distilled, directory, Silent())


@pytest.fixture
def run(made, tmp_path):
    """A copy of the finished run, free to be spoiled."""
    recipe, distilled, directory, result = made
    shutil.copytree(directory.root, tmp_path / "run")
    return recipe, distilled, RunDirectory(tmp_path / "run"), result


def logits(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def stamps(directory):
    return {path.name: path.stat().st_mtime_ns for path in directory.root.glob("*.onnx")}


def test_every_network_and_variant_is_a_proved_file(made):
    _, _, directory, result = made
    names = [model.name for model in result.models]
    assert names == ["teacher", "student", "student.int8", "student.int8-dynamic", "student.fp16"]
    for model in result.models:
        assert (directory.root / model.file).stat().st_size == model.size_bytes
        assert model.parity is not None
        assert model.parity.passed
        assert model.parity.samples >= 256
        assert {1, 2, 7} <= set(model.parity.batch_sizes)
        assert model.inputs == {"input": ["batch", 8, 8, 1]}
    assert not [path for path in directory.root.iterdir() if ".tmp" in path.name]


def test_every_file_is_valid_onnx(made):
    _, _, directory, result = made
    for model in result.models:
        onnx.checker.check_model(onnx.load(directory.root / model.file), full_check=True)


def test_the_file_takes_raw_images_and_answers_as_torch_does(made):
    recipe, _, directory, _ = made
    dataset = load_data(recipe.data, recipe.seed, directory.cache)
    model = load_model("student", recipe.student, dataset, directory.weights("student"))
    images = dataset.test.inputs[0][:100]
    pixels = torch.from_numpy(images.astype(np.float64) / 255).permute(0, 3, 1, 2)
    normalized = (pixels - model.preprocessing.mean[0]) / model.preprocessing.std[0]
    with torch.no_grad():
        expected = model.network(normalized.float()).numpy()
    np.testing.assert_allclose(logits(directory.onnx("student"), images), expected, rtol=1e-4, atol=1e-5)


def test_batch_normalization_is_folded_and_nothing_of_this_machine_is_in_the_file(made):
    _, _, directory, result = made
    assert "BatchNormalization" not in result.models[1].operators
    model = onnx.load(directory.onnx("student"))
    onnx.checker.check_model(model, full_check=True)
    content = directory.onnx("student").read_bytes()
    assert str(directory.root).encode() not in content
    assert b".py" not in content
    assert {"norm/Conv", "head/Gemm"} <= {node.name for node in model.graph.node}
    assert "head.weight" in {item.name for item in model.graph.initializer}


def test_the_file_describes_itself(made):
    _, _, directory, _ = made
    message = {item.key: item.value for item in onnx.load(directory.onnx("student", "int8")).metadata_props}
    assert json.loads(message["kdexport.labels"]) == [str(digit) for digit in range(10)]
    assert message["kdexport.precision"] == "int8"
    assert message["kdexport.baked"] == "true"
    assert json.loads(message["kdexport.preprocessing"])["kind"] == "image"
    assert message["kdexport.opset"] == "18"


def test_int8_has_unsigned_activations_and_signed_weights_per_channel(made):
    _, _, directory, _ = made
    graph = onnx.load(directory.onnx("student", "int8")).graph
    constants = {item.name: item for item in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    producers = {output: node for node in graph.node for output in node.output}
    assert convolutions
    for node in convolutions:
        activation, weight = producers[node.input[0]], producers[node.input[1]]
        assert constants[activation.input[2]].data_type == onnx.TensorProto.UINT8
        assert constants[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert list(constants[weight.input[1]].dims) == [constants[weight.input[0]].dims[0]]


def test_nothing_is_made_twice(run):
    recipe, distilled, directory, result = run
    before = stamps(directory)
    assert stage.export(recipe, distilled, directory, Silent()) == result
    assert stamps(directory) == before


def test_a_changed_setting_makes_only_what_depends_on_it(run, make_run, tmp_path):
    recipe, distilled, directory, _ = run
    before = stamps(directory)
    changed = recipe.model_copy(update={"export": recipe.export.model_copy(update={"calibration_samples": 100})})
    stage.export(changed, distilled, directory, Silent())
    assert {name for name, stamp in stamps(directory).items() if stamp != before[name]} == {"student.int8.onnx"}


def test_a_spoiled_file_is_made_again(run):
    recipe, distilled, directory, result = run
    path = directory.onnx("student", "fp16")
    path.write_bytes(path.read_bytes()[:-100])
    assert stage.export(recipe, distilled, directory, Silent()) == result


def test_figures_that_were_changed_are_proved_again_and_a_lost_program_is_written(run):
    recipe, distilled, directory, result = run
    record = directory.stage("export").read_text()
    directory.stage("export").write_text(record.replace('"max_abs": ', '"max_abs": 0'))
    again = stage.export(recipe, distilled, directory, Silent())
    assert [model.parity for model in again.models] == [model.parity for model in result.models]
    (directory.root / "infer.py").unlink()
    assert stage.export(recipe, distilled, directory, Silent()) == again
    assert (directory.root / "infer.py").is_file()


def test_an_interrupted_export_goes_on_after_what_is_there(run):
    recipe, distilled, directory, result = run
    mark_done(
        directory.stage("export"), "", dataclasses.replace(result, models=result.models[:2])
    )  # as a kill after the student
    directory.onnx("student", "int8").unlink()
    before = stamps(directory)
    assert stage.export(recipe, distilled, directory, Silent()) == result
    assert stamps(directory)["teacher.onnx"] == before["teacher.onnx"]


def test_a_file_that_differs_is_not_left_behind(make_run, tmp_path):
    recipe, distilled, directory = make_run(tmp_path, parity_tolerance=1e-12)
    with pytest.raises(ParityError, match=r"teacher\.onnx differs .* 1e-12 is allowed") as caught:
        stage.export(recipe, distilled, directory, Silent())
    assert "would pass" in caught.value.hint
    assert not list(tmp_path.glob("*.onnx"))
    assert not list(tmp_path.glob(".*.onnx"))


def test_a_teacher_that_came_as_onnx_takes_its_place(made, make_run, tmp_path):
    recipe, distilled, directory, _ = made
    given = tmp_path / "mine.onnx"
    shutil.copy(directory.onnx("teacher"), given)
    recipe = recipe.model_copy(
        update={
            "teacher": recipe.teacher.model_copy(update={"model": str(given), "args": {}}),
            "export": recipe.export.model_copy(update={"quantize": ()}),
        }
    )
    teacher = dataclasses.replace(distilled.networks[0], reference=str(given))
    other = RunDirectory(tmp_path / "run")
    other.prepare()
    result = stage.export(recipe, dataclasses.replace(distilled, networks=(teacher,)), other, Silent())
    images = load_data(recipe.data, recipe.seed, directory.cache).test.inputs[0][:10]
    np.testing.assert_array_equal(logits(other.onnx("teacher"), images), logits(given, images))
    assert result.models[0].parity is None
    assert "given as ONNX" in result.models[0].notes[0]


def test_the_students_weights_load_into_the_users_own_class(made, load_net):
    _, _, directory, _ = made
    network = load_net("Net", width=8)
    network.load_state_dict(safetensors.torch.load_file(directory.weights("student")))


def test_a_network_of_a_mebibyte_shrinks_to_a_third(make_run, tmp_path):
    recipe, distilled, directory = make_run(tmp_path, networks=("student",), width=180, quantize=["int8"])
    student, small = stage.export(recipe, distilled, directory, Silent()).models
    assert student.size_bytes > 2**20
    assert small.size_bytes <= 0.32 * student.size_bytes


def test_a_variant_that_cannot_be_had_costs_no_other(run):
    recipe, distilled, directory, result = run
    changed = recipe.model_copy(
        update={"export": recipe.export.model_copy(update={"quantize": ("int4", *recipe.export.quantize)})}
    )
    before = stamps(directory)
    again = stage.export(changed, distilled, directory, Silent())
    assert again.models == result.models
    assert stamps(directory) == before
    assert [failure.model for failure in again.failures] == ["student.int4"]
    assert "no matrix product" in again.failures[0].reason
    assert "int8" in again.failures[0].hint
    assert json.loads(directory.stage("export").read_text())["failures"][0]["model"] == "student.int4"


def test_a_variant_for_which_there_is_no_space_ends_the_export(run, monkeypatch):
    """No space for temporary files is no reason to leave a variant out, or operators in fp32."""

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recipe, distilled, directory, _ = run
    monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", no_space)
    directory.onnx("student", "int8").unlink()
    with pytest.raises(StorageError, match="No space left") as caught:
        stage.export(recipe, distilled, directory, Silent())
    assert "TMPDIR" in caught.value.hint


def test_a_network_that_proves_nothing_costs_no_other(run):
    """A student that answers all samples alike is left out; the teacher is measured."""
    recipe, distilled, directory, _ = run
    weights = safetensors.torch.load_file(directory.weights("student"))
    weights["head.weight"] *= 0
    safetensors.torch.save_file(weights, directory.weights("student"))
    student = dataclasses.replace(distilled.networks[1], weights_sha256="other")
    dead = dataclasses.replace(distilled, networks=(distilled.networks[0], student))
    told: list[str] = []
    progress = Silent()
    progress.warn = told.append
    again = stage.export(recipe, dead, directory, progress)
    assert "(train it for longer, or give it trained weights" in told[0]  # what can be done, not only what is wrong
    assert [model.name for model in again.models] == ["teacher"]
    assert [failure.model for failure in again.failures] == [
        "student", "student.int8", "student.int8-dynamic", "student.fp16",
    ]  # fmt: skip
    assert "prove nothing" in again.failures[0].reason
    assert not list(directory.root.glob("student*.onnx"))


def test_a_moved_run_is_not_exported_again_and_other_data_are(made, tmp_path):
    """Keys hold contents, no places; the data's mean is in the graph, so that it counts."""
    recipe, distilled, directory, _ = made
    nets, data = tmp_path / "a" / "nets.py", tmp_path / "a" / "d.npz"
    nets.parent.mkdir()
    shutil.copy(recipe.teacher.model.rpartition(":")[0], nets)
    digits = load_data(recipe.data, recipe.seed, directory.cache)
    arrays = {"x_train": digits.train.inputs[0][:300], "y_train": digits.train.labels[:300]}
    arrays |= {"x_test": digits.test.inputs[0][:100], "y_test": digits.test.labels[:100]}
    np.savez(data, **arrays)

    def at(folder):
        there = f"{folder / 'nets.py'}:Net"
        return recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"source": f"npz:{folder / 'd.npz'}"}),
                "teacher": recipe.teacher.model_copy(update={"model": there}),
                "student": recipe.student.model_copy(update={"model": there}),
                "export": recipe.export.model_copy(update={"quantize": ("fp16",)}),
            }
        )

    run = RunDirectory(tmp_path / "a" / "run")
    shutil.copytree(directory.root, run.root, ignore=shutil.ignore_patterns("*.onnx", "export.json"))
    stage.export(at(nets.parent), distilled, run, Silent())
    before = stamps(run)
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = RunDirectory(tmp_path / "b" / "run")
    stage.export(at(tmp_path / "b"), distilled, moved, Silent())
    assert stamps(moved) == before
    arrays["x_train"] = arrays["x_train"] // 2
    np.savez(tmp_path / "b" / "d.npz", **arrays)
    stage.export(at(tmp_path / "b"), distilled, moved, Silent())
    assert all(stamp != before[name] for name, stamp in stamps(moved).items())
