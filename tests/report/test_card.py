"""The model card, read as a model hub reads it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdexport.onnx import example
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
    assert "Distilled from Teacher (nets.py) with soft\\_targets (weight 0.9, temperature 4), label weight 0.1" in text
    assert "not shown to help" in text
    assert "Weakest on the class" in text


@pytest.mark.parametrize(
    ("teacher", "base", "name"),
    [
        ("hf:google/vit-base-patch16-224", "google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("hf:/home/someone/tuned", None, "tuned"),
        ("timm:resnet18", "timm/resnet18", "resnet18"),
        ("torchvision:resnet18", None, "resnet18"),
        ("/home/someone/nets.py:Teacher", None, "Teacher (nets.py)"),
    ],
)
def test_it_says_what_the_model_is_and_where_it_comes_from(build, teacher: str, base, name: str) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the hub's own reader is not installed")
    recipe = {
        **build.RECIPE,
        "teacher": {"model": teacher},
        "data": {"source": "torchvision:CIFAR10"},
        "export": {"license": "Apache-2.0"},
    }
    text = card(report([build.bench(recipe=recipe)], Require(max_drop=0.03)))
    data = hub.ModelCard(text).data.to_dict()
    assert (data["license"], data["datasets"], data.get("base_model")) == ("apache-2.0", ["uoft-cs/cifar10"], base)
    opening = text.partition("\n# ")[2].splitlines()[2]
    expected = f"A 19.9 k-parameter image classifier for torchvision:CIFAR10 (10 classes), distilled from {name} "
    assert opening == f"{expected}(420 k parameters)."
    assert "/home/someone" not in text
    for given, license_, called in (
        ("Research only", "other", "research-only"),
        ("Acme-1.0", "other", "acme-1.0"),
        ("GPL-3.0-or-later", "gpl-3.0", None),
        ("BSD-3-Clause", "bsd-3-clause", None),
    ):
        words = {**recipe, "export": {"license": given}, "data": {"source": "imagefolder:/home/someone/photos"}}
        data = hub.ModelCard(card(report([build.bench(recipe=words)]))).data.to_dict()
        assert (data["license"], data.get("license_name")) == (license_, called)
        assert "datasets" not in data, "the hub refuses what cannot be a data set's name"


def test_an_is_written_where_it_is_spoken(build) -> None:
    for parameters, article in ((11_200, "An 11.2 k"), (8_000_000, "An 8.00 M"), (1_100, "A 1.10 k"), (18, "An 18-")):
        models = {"teacher": build.DIGITS["teacher"], "student": (0.99, 83.0, 0.062, parameters)}
        assert f"\n{article}" in card(report([build.bench(models=models)], Require(min_speedup=2.0)))


def tiny_file(path: Path, inputs: dict[str, tuple[int, list]], outputs: int = 1) -> None:
    """Write a file with inputs of any type and shape, each output the first input's values as float."""
    from onnx import TensorProto, helper, save

    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    first, (_, shape) = next(iter(inputs.items()))
    names = [f"out{index}" for index in range(outputs)]
    nodes = [helper.make_node("Cast", [first], [name], to=TensorProto.FLOAT) for name in names]
    # Every input takes part: one of a wrong type or shape is refused by the runtime.
    nodes += [helper.make_node("Shape", [name], [f"{name}_shape"]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    results += [helper.make_tensor_value_info(f"{name}_shape", TensorProto.INT64, [None]) for name in inputs]
    graph = helper.make_graph(nodes, "tiny", given, results)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"input": (2, ["batch", 8, 8, 1])}, 1),  # uint8 pictures
        ({"input": (1, ["batch", 3, 8, 8])}, 1),  # float pictures
        ({"input": (10, [1, 3, 8, 8])}, 1),  # half
        ({"input_ids": (7, ["batch", "length"]), "attention_mask": (7, ["batch", "length"])}, 1),
        ({"flags": (9, ["batch", 4]), "dose": (11, ["batch"])}, 3),  # bool and double, as with top_k several outputs
    ],
    ids=["uint8", "float", "half", "ids", "others"],
)
def test_its_code_runs_as_printed(build, tmp_path, monkeypatch, capsys, inputs, outputs: int) -> None:
    pytest.importorskip("onnxruntime")
    bench = build.bench()
    text = card(report([bench]))
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    tiny_file(tmp_path / "student.onnx", inputs, outputs)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "card.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == outputs + len(inputs)
    assert printed[0].startswith("out0 float32 (1, ")


def test_its_code_is_that_of_infer_py(build, tmp_path) -> None:
    pytest.importorskip("onnx")
    tiny_file(tmp_path / "student.onnx", {"x": (1, ["batch", 4])})
    np.save(tmp_path / "x.npy", np.ones((2, 4)))
    snippet = re.search(r"```python\n(.*?)```", card(report([build.bench()]), tmp_path), re.DOTALL)[1]
    (tmp_path / "infer.py").write_text(snippet)
    example.write(tmp_path / "student.onnx", force=True)
    assert (tmp_path / "infer.py").read_text().startswith(snippet.rstrip())
    command = [sys.executable, "infer.py", "x.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0 0 1.000", "1 0 1.000"]
    (tmp_path / "student.onnx").write_bytes(b"no ONNX")
    assert "np.zeros" in card(report([build.bench()]), tmp_path)


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
