"""--task: what data are for where they leave a doubt, of models that say nothing themselves."""

import json

import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn import metrics
from typer.testing import CliRunner

from kdexport.cli import app
from kdexport.onnx.sessions import OnnxSession

QUICK = ["--threads", "1", "--max-seconds", "0.05", "--min-seconds", "0.02", "--rounds", "1"]


def command(*words, code=0):
    call = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert call.exit_code == code, call.stderr
    return json.loads(call.stdout) if code == 0 else call.stderr


def foreign_embedder(path):
    """A file that says nothing of itself: pixels [n, 8, 8, 3] in, four numbers a picture out."""
    proto, helper = onnx.TensorProto, onnx.helper
    weights = np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32)
    constants = [onnx.numpy_helper.from_array(weights, "w")]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=proto.FLOAT),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["vectors"]),
    ]
    inputs = [helper.make_tensor_value_info("pixels", proto.UINT8, ["n", 8, 8, 3])]
    outputs = [helper.make_tensor_value_info("vectors", proto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "embedder", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Pictures of eight people in a folder each: identities, which look like classes."""
    folder = tmp_path_factory.mktemp("people")
    generator = np.random.default_rng(1)
    for split, names in (("train", "abcd"), ("val", "ef"), ("test", "gh")):
        for name in names:
            (folder / "faces" / split / name).mkdir(parents=True)
            own = generator.integers(0, 200, (8, 8, 3))
            for number in range(4):
                pixels = (own + generator.integers(0, 56, own.shape)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "faces" / split / name / f"{number}.png")
    foreign_embedder(folder / "given.onnx")
    return folder


def test_identities_in_folders_are_scored_as_embeddings_where_the_task_says_so(people, tmp_path):
    given, data = people / "given.onnx", ["--data", f"imagefolder:{people / 'faces'}"]
    for words in (["bench", given, *data, *QUICK], ["evaluate", given, *data]):
        assert "task is embedding" in command(*words, code=1)  # train and test hold other names
    found = command("evaluate", given, *data, "--task", "embedding")
    (model,) = command("bench", given, *data, "--task", "embedding", *QUICK)["models"]
    assert model["score"] == found["score"]
    files = sorted((people / "faces" / "test").glob("*/*.png"))
    vectors = OnnxSession(given)((np.stack([np.asarray(Image.open(file)) for file in files]),))[0]
    left, right = np.triu_indices(len(files), 1)
    same = np.array([files[a].parent == files[b].parent for a, b in zip(left, right, strict=True)])
    cosines = metrics.pairwise.cosine_similarity(vectors.astype(np.float64))[left, right]
    expected = metrics.balanced_accuracy_score(same, cosines >= found["metrics"]["threshold"])
    assert found["score"]["value"] == pytest.approx(expected, abs=1e-9)
    made = command("export", given, "--quantize", "int8", *data, "--task", "embedding", "--out", tmp_path / "i.onnx")
    assert made["models"][0]["notes"][-1].startswith("verification accuracy")
    stated = OnnxSession(tmp_path / "i.onnx").metadata
    assert -1 <= float(stated["kdexport.threshold"]) <= 1


def test_few_whole_numbers_in_a_table_are_what_the_task_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(2)
    features = generator.normal(size=(60, 2)).astype(np.float32)
    wanted = np.clip(np.round(features @ [1.0, 0.5] + 2), 0, 4).astype(int)
    lines = [f"{a},{b},{y}" for (a, b), y in zip(features, wanted, strict=True)]
    (tmp_path / "stars.csv").write_text("\n".join(["a,b,stars", *lines]) + "\n")
    proto, helper = onnx.TensorProto, onnx.helper
    constants = [onnx.numpy_helper.from_array(np.array([[1.0], [0.5]], np.float32), "w")]
    constants.append(onnx.numpy_helper.from_array(np.array([2.0], np.float32), "b"))
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    graph = helper.make_graph(
        nodes, "linear", [helper.make_tensor_value_info("x", proto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", proto.FLOAT, ["n", 1])], constants,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "stars.onnx")
    data = ["--data", "table:stars.csv", "--label-column", "stars"]
    (model,) = command("bench", "stars.onnx", *data, "--task", "regression", *QUICK)["models"]
    assert model["score"]["metric"] == "mean_absolute_error"
    assert model["score"]["value"] < 0.5  # of rounding
    said = command("bench", "stars.onnx", *data, "--task", "regresion", *QUICK, code=1)
    assert "there is no task 'regresion'" in said
    assert "regression" in said


@pytest.mark.parametrize("words", [["bench"], ["export", "--quantize", "fp16"]])
def test_a_task_is_of_data(people, words):
    said = command(words[0], people / "given.onnx", *words[1:], "--task", "embedding", code=1)
    assert "--task is of --data" in said
    assert "hint:" in said


def test_weights_with_a_second_name_elsewhere_are_refused_in_words(people, tmp_path):
    onnx.save(
        onnx.load(people / "given.onnx"),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    (tmp_path / "elsewhere").hardlink_to(tmp_path / "w.bin")
    said = command("export", tmp_path / "m.onnx", "--quantize", "fp16", "--out", tmp_path / "o.onnx", code=1)
    assert "multiple hard links" in said
    assert "cp -L" in said
    assert not (tmp_path / "o.onnx").exists()


def test_zeros_and_ones_are_numbers_to_a_file_of_numbers(people, tmp_path):
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    wanted = (generator.random((40, 4)) > 0.5).astype(np.float32)
    np.savez(tmp_path / "m.npz", x_train=pixels, y_train=wanted, x_test=pixels[:9], y_test=wanted[:9])
    data = ["--data", f"npz:{tmp_path / 'm.npz'}"]
    assert command("evaluate", people / "given.onnx", *data)["score"]["metric"] == "mean_average_precision"
    model = onnx.load(people / "given.onnx")
    onnx.helper.set_model_props(model, {"kdexport.task": "regression"})
    onnx.save(model, tmp_path / "own.onnx")
    found = command("evaluate", tmp_path / "own.onnx", *data)["score"]
    outputs = OnnxSession(people / "given.onnx")((pixels[:9],))[0].astype(np.float64)
    assert found["value"] == pytest.approx(metrics.mean_absolute_error(wanted[:9], outputs), abs=1e-9)
    (measured,) = command("bench", tmp_path / "own.onnx", *data, *QUICK)["models"]
    assert measured["score"] == found
    assert "is for regression" in command("evaluate", tmp_path / "own.onnx", *data, "--task", "multilabel", code=1)


def test_a_file_that_embeds_is_scored_as_nothing_else(people, tmp_path):
    model = onnx.load(people / "given.onnx")
    onnx.helper.set_model_props(model, {"kdexport.task": "embedding"})
    onnx.save(model, tmp_path / "own.onnx")
    data = ["--data", f"imagefolder:{people / 'faces'}"]
    assert command("evaluate", tmp_path / "own.onnx", *data)["score"]["metric"] == "verification_accuracy"
    for words in (["evaluate"], ["bench"]):
        said = command(*words, tmp_path / "own.onnx", *data, "--task", "classification", code=1)
        assert "says that it is for embedding" in said
