"""Segmentation goes the whole way: trained, exported, scored in every stage by the same figure, packed and shown."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sklearn import metrics
from torch import nn

from kdexport.api import evaluate
from kdexport.artifacts import RunDirectory
from kdexport.bench.pack import pack
from kdexport.bench.packed import Sample
from kdexport.bench.stage import BenchRequest
from kdexport.data.datasets import load_data
from kdexport.data.samples import Split
from kdexport.errors import KDExportError
from kdexport.export.standalone import Request, _pick_map, export
from kdexport.export.target import Form
from kdexport.models.loading import load_model
from kdexport.onnx.describe import describe_file
from kdexport.onnx.sessions import OnnxSession
from kdexport.pipeline import run
from kdexport.progress import Silent
from kdexport.recipe import Recipe
from kdexport.scoring import evaluate as scored

NETS = '''
from torch import nn


class Net(nn.Module):
    """A map of half the image's size, as torchvision names it, with an auxiliary head."""

    def __init__(self, num_classes, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2), nn.BatchNorm2d(width), nn.ReLU())
        self.head, self.extra = nn.Conv2d(width, num_classes, 3, padding=1), nn.Conv2d(width, num_classes, 1)

    def forward(self, image):
        found = self.body(image)
        return {"out": self.head(found), "aux": self.extra(found)}
'''
CLASSES = ("ground", "block", "dot")


def scenes(count, seed, size=(24, 30)):
    """Noisy images of a red block and a green dot on dark ground, and their masks with some void."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), dtype=np.uint8)
    for mask in masks:
        for number, side in ((1, 11), (2, 7)):
            top, left = (int(rng.integers(0, length - side)) for length in size)
            mask[top : top + side, left : left + side] = number
    images = np.array([[30, 30, 30], [200, 60, 60], [60, 200, 80]])[masks] + rng.normal(0, 20, (*masks.shape, 3))
    masks[:, 0, :5] = 255
    return images.clip(0, 255).astype(np.uint8), masks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of masks, a recipe, its run and its report."""
    root = tmp_path_factory.mktemp("segmentation")
    for split, count in (("train", 32), ("val", 10), ("test", 12)):
        for number, (image, mask) in enumerate(zip(*scenes(count, len(split) + count), strict=True)):
            for name, pixels in (("images", image), ("masks", mask)):
                path = root / "shapes" / split / name / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "shapes" / "classes.txt").write_text("\n".join(CLASSES))
    (root / "nets.py").write_text(NETS)
    training = {"epochs": 3, "batch_size": 8, "lr": 0.1, "augment": ["flip", "shift", "rotate", "color"]}
    recipe = Recipe.parse(
        {
            "name": "shapes",
            "data": {"source": "masks:shapes"},
            "teacher": {"model": "nets.py:Net", "args": {"width": 12}, "train": training},
            "student": {"model": "nets.py:Net", "args": {"width": 4}},
            "distill": {
                **training,
                "views": 2,
                "teacher_pixels": 200,
                "terms": [
                    {"method": "soft_targets", "temperature": 2.0},
                    {"method": "channel_wise"},
                ],
            },
            "export": {"quantize": ["int8"], "max_drop": 0.05},
            "bench": {"min_seconds": 0.02, "max_seconds": 0.05, "rounds": 1, "threads": [1], "batch_sizes": [1]},
        },
        base=root,
    )
    return root, recipe, run(recipe, root / "run")


def mean_iou(predicted, masks):
    known = masks != 255
    return metrics.jaccard_score(masks[known], predicted[known], average="macro", labels=np.unique(masks[known]))


def test_every_stage_scores_the_same_and_as_scikit_learn(made):
    root, recipe, report = made
    data = load_data(recipe.data, recipe.seed, root / "run" / "cache")
    images, masks = data.test.inputs[0][:], data.test.labels[:]
    for model in report.models:
        session = onnxruntime.InferenceSession(root / "run" / model.file)
        (logits,) = session.run(None, {session.get_inputs()[0].name: images})
        assert logits.shape == (12, 3, 24, 30)  # in the size of the masks
        predicted = logits.argmax(axis=1)
        assert model.score.metric == "mean_iou"
        assert model.score.value == pytest.approx(mean_iou(predicted, masks), abs=1e-9)
        low, high = model.score.ci95
        assert low <= model.score.value <= high
        known = masks != 255
        matrix = metrics.confusion_matrix(masks[known], predicted[known])
        assert np.array_equal(model.evaluation.confusion, matrix)
        again = evaluate(OnnxSession(root / "run" / model.file, output_ndim=4).predict, data.test, CLASSES)
        assert again[0].score == model.score
    teacher, student = (next(m for m in report.models if m.name == name) for name in ("teacher", "student"))
    assert teacher.score.value > 0.6  # it has learned, and the rest is not vacuous
    trade = next(item for item in report.tradeoffs if item.model == "student")
    assert trade.score_delta == pytest.approx(student.score.value - teacher.score.value)
    assert trade.score_delta_ci95[0] <= trade.score_delta <= trade.score_delta_ci95[1]


def test_masks_of_the_graph_are_pythons(made):
    root, recipe, report = made
    data = load_data(recipe.data, recipe.seed, root / "run" / "cache")
    for name, spec in (("teacher", recipe.teacher), ("student", recipe.student)):
        model = load_model(name, spec, data, RunDirectory(root / "run").weights(name))
        images = data.test.inputs[0][:]
        expected = model.network(*model.preprocessing.apply((images,))).detach().numpy()
        found = OnnxSession(root / "run" / f"{name}.onnx")((images,))[0]
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.999
        entry = next(item for item in report.models if item.name == name)
        assert entry.parity.passed
        assert entry.parity.max_rel <= 1e-4
        assert entry.parity.argmax_agreement >= 0.999


def test_a_network_without_a_run_gives_its_map_in_the_masks_size(made):
    root, recipe, _ = made
    data = load_data(recipe.data, recipe.seed, root / "run" / "cache")
    model = load_model("network", recipe.student, data, RunDirectory(root / "run").weights("student"), any_output=True)
    inputs = model.preprocessing.apply((data.test.inputs[0][:2],))
    assert set(model.network(*inputs)) == {"out", "aux"}
    _pick_map(model, data)
    assert model.network(*inputs).shape == (2, 3, 24, 30)


def test_probabilities_in_the_graph_are_over_the_classes(made, tmp_path):
    root, recipe, report = made
    request = Request(
        f"{root / 'nets.py'}:Net",
        tmp_path / "p.onnx",
        {"width": 4},
        weights=str(RunDirectory(root / "run").weights("student")),
        data=recipe.data,
    )
    form = Form(18, 10, 1e-4, bake=True, softmax=True)
    export(request, form, Silent())
    data = load_data(recipe.data, recipe.seed, root / "run" / "cache")
    session = OnnxSession(tmp_path / "p.onnx", output_ndim=4)
    (shares,) = session((data.test.inputs[0][:],))
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    student = next(model for model in report.models if model.name == "student")
    assert evaluate(session.predict, data.test, CLASSES)[0].score.value == pytest.approx(student.score.value, abs=1e-3)
    with pytest.raises(KDExportError, match="top_k lists the best classes of a sample"):
        export(dataclasses.replace(request, out=tmp_path / "q.onnx"), dataclasses.replace(form, top_k=2), Silent())


def test_a_pack_scores_the_same_with_numpy_alone(made, tmp_path):
    root, recipe, report = made
    data = load_data(recipe.data, recipe.seed, root / "run" / "cache")
    files = [describe_file(root / "run" / "student.onnx")]
    out = tmp_path / "bench.pyz"
    pack(BenchRequest(files, recipe.bench, "p", dataset=data), out, progress=Silent())
    done = subprocess.run([sys.executable, "-I", out, "--out", tmp_path / "there.json", "--quiet"], check=False)
    assert done.returncode == 0
    (there,) = json.loads((tmp_path / "there.json").read_text())["models"]
    student = next(model for model in report.models if model.name == "student")
    assert there["score"]["value"] == pytest.approx(student.score.value, abs=1e-12)
    assert there["evaluation"]["resamples"] == pytest.approx(student.evaluation.resamples)
    assert there["evaluation"]["metrics"] == pytest.approx(student.evaluation.metrics, abs=1e-12)
    for here, row in zip(student.evaluation.per_class, there["evaluation"]["per_class"], strict=True):
        for figure in ("iou", "accuracy", "samples"):
            assert row[figure] == pytest.approx(getattr(here, figure), abs=1e-12), (here.name, figure)


def test_int8_was_guarded_by_the_score_and_the_log_tells_of_it(made):
    root, _, report = made
    assert any(model.name == "student.int8" for model in report.models)
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    student = [line for line in lines if line["phase"] == "student" and "val_score" in line]
    assert all(0 <= line["val_score"] <= 1 and 0 <= line["top1_agreement"] <= 1 for line in student)
    assert {"labels", "soft_targets", "channel_wise"} == set(student[-1]["terms"])
    assert [line["teacher_from"] for line in student] == ["online", "online", "cache"]  # two views, 200 pixels of each


def test_the_report_shows_masks_and_every_class(made):
    root, _, report = made
    page = (root / "run" / "report.html").read_text()
    assert len(page) < 0.3 * 2**20
    pictures = re.findall(r'<image href="data:image/png;base64,', page)
    assert len(pictures) == 2 * 3 * 6  # wide and narrow, three scenes, six maps
    assert "IoU of student, student-plain, teacher by class" in page
    shown = [sum(bool(one.truth) for one in model.evaluation.pictures) for model in report.models]
    assert shown == [3, 0, 0, 0]  # the images are kept once
    card = (root / "run" / "card.md").read_text()
    assert "image-segmentation" in card
    assert "which of 3 classes" in card
    assert re.search(r"\| dot \| [\d.]+ % \|", card)


def test_the_program_beside_the_file_writes_masks(made, tmp_path):
    root, _, _ = made
    photo = root / "shapes" / "test" / "images" / "03.png"
    done = subprocess.run(
        [sys.executable, root / "run" / "infer.py", photo], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "03.mask.png" in done.stdout
    assert "ground" in done.stdout
    shipped = re.search(r"Run ([\w.-]+\.onnx)", (root / "run" / "infer.py").read_text())
    session = onnxruntime.InferenceSession(root / "run" / shipped.group(1))
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.asarray(Image.open(photo))[None]})
    assert np.array_equal(np.asarray(Image.open(tmp_path / "03.mask.png")), logits[0].argmax(axis=0))


def test_nothing_is_done_twice(made):
    root, recipe, report = made
    before = {path: path.stat().st_mtime_ns for path in (root / "run").glob("*.onnx")}
    again = run(recipe, root / "run")
    assert [model.score for model in again.models] == [model.score for model in report.models]
    assert {path: path.stat().st_mtime_ns for path in (root / "run").glob("*.onnx")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill": {"augment": ["mixup"]}}, "cannot be mixed"),
        ({"data": {"unlabelled": "imagefolder:shapes/test"}}, "unlabelled samples cannot be used for segmentation"),
        ({"task": "classification"}, "are not those of classification"),
        ({"student": {"output": "auxx"}}, "no output 'auxx'"),
    ],
)
def test_what_does_not_fit_masks_says_so(made, tmp_path, change, message):
    root, recipe, _ = made
    document = recipe.to_dict(relative_to=root)
    for table, values in change.items():
        document[table] = {**document[table], **values} if isinstance(values, dict) else values
    with pytest.raises(KDExportError, match=message) as caught:
        run(Recipe.parse(document, base=root), tmp_path / "run")
    assert caught.value.hint


def test_scoring_never_holds_a_split_of_logits(monkeypatch):
    images, masks = scenes(40, 1)
    monkeypatch.setattr("kdexport.scoring.VALUES_AT_ONCE", 3 * 24 * 30 * 4)
    seen = []

    def predict(inputs):
        seen.append(len(inputs[0]))
        return np.stack([inputs[0][..., c] for c in range(3)], axis=1).astype(np.float32)

    evaluation, kept = scored(predict, Split((images,), masks), CLASSES)
    assert max(seen) == 4
    assert kept.dtype.names == ("classes", "logits")
    packed, _ = scored(predict, Sample((images,), masks, "segmentation"), CLASSES)
    assert packed == evaluation


def test_torchvisions_networks_come_without_downloads(monkeypatch):
    from kdexport.models.networks import load_network

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("it is downloaded"))
    network = load_network("torchvision:lraspp_mobilenet_v3_large", {}, 3)
    assert isinstance(network, nn.Module)
    assert sum(parameter.numel() for parameter in network.parameters()) > 3e6


@pytest.mark.slow
def test_the_camvid_pair_takes_street_scenes(shared_data, tmp_path):
    folder = shared_data("camvid") / "camvid"
    pair = Path(__file__).parents[2] / "models" / "camvid" / "recipe.toml"
    recipe = Recipe.load(pair, [f"data.source=masks:{folder}", "data.image_size=[24, 32]"])
    data = load_data(recipe.data, recipe.seed, tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (367, 101, 233)
    assert data.class_names[:3] == ("Sky", "Building", "Pole")
    assert len(data.class_names) == 11
    parameters = []
    for role, spec in (("teacher", recipe.teacher), ("student", recipe.student)):
        model = load_model(role, spec, data, learns=True)
        assert model.network(*model.preprocessing.apply((data.test.inputs[0][:2],))).shape == (2, 11, 24, 32)
        parameters.append(sum(parameter.numel() for parameter in model.network.parameters()))
    assert parameters[0] > 10 * parameters[1]
    first = sorted((folder / "test" / "masks").iterdir())[0]
    with Image.open(first) as mask:
        expected = np.asarray(mask.resize((32, 24), Image.Resampling.NEAREST))
    assert (np.asarray(data.test.labels[0]) == expected).mean() > 0.99
    assert set(np.unique(data.test.labels[:])) <= {*range(11), 255}
