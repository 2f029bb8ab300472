"""Files are whole or absent, also where the weights lie beside them; and what goes with them runs."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from kdexport.errors import KDExportError
from kdexport.export import network_export
from kdexport.export.target import ExportTarget, Form
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import example, files
from kdexport.onnx.sessions import OnnxSession

FORM = Form(18, 8, 1e-4)


@pytest.fixture
def subject(load_net):
    torch.manual_seed(0)
    samples = (np.random.default_rng(0).standard_normal((40, 1, 8, 8), dtype=np.float32),)
    labels = tuple("abcdefghij")
    return ExportTarget("net", load_net("Net").eval(), Preprocessing("none"), ("image",), samples, class_names=labels)


def test_weights_beyond_the_limit_lie_beside_the_file(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SINGLE_FILE_BYTES", 1000)
    made = network_export.write(subject, FORM, tmp_path / "net.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert made.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    stored = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    places = {
        entry.value for item in stored.graph.initializer for entry in item.external_data if entry.key == "location"
    }
    assert places == {"net.onnx.data"}
    OnnxSession(tmp_path / "net.onnx")(subject.samples)
    monkeypatch.setattr(files, "SINGLE_FILE_BYTES", 2**31)
    network_export.write(subject, FORM, tmp_path / "net.onnx")  # small again: the old weights would only be in the way
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("limit", [1000, 2**31])
def test_a_full_disk_leaves_nothing_behind(limit, subject, tmp_path, monkeypatch):
    def full(model, path, **_):
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "SINGLE_FILE_BYTES", limit)
    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(KDExportError, match="No space left on device") as caught:
        network_export.write(subject, FORM, tmp_path / "net.onnx")
    assert "free some space" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_the_ort_format_loads_and_lists_its_operators(subject, tmp_path):
    network_export.write(subject, FORM, tmp_path / "net.onnx")
    target, listed = files.write_ort(tmp_path / "net.onnx")
    np.testing.assert_allclose(
        OnnxSession(target)(subject.samples)[0],
        OnnxSession(tmp_path / "net.onnx")(subject.samples)[0],
        rtol=1e-4,
        atol=1e-5,
    )
    line = listed.read_text().splitlines()[1]
    domain, opset, operators = line.split(";")
    assert (domain, opset) == ("ai.onnx", "18")
    assert {"Conv", "Gemm"} <= set(operators.split(","))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python that has numpy and onnxruntime, with what onnxruntime itself requires, and nothing else."""
    root = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    packages = next((root / "lib").glob("python*")) / "site-packages"
    site = Path(np.__file__).parents[1]
    assert Path(onnxruntime.__file__).parents[1] == site
    for name in ("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging"):
        if (site / name).exists():
            (packages / name).symlink_to(site / name)
    return root / "bin" / "python"


@pytest.mark.slow  # makes a virtual environment
@pytest.mark.parametrize("baked", [True, False])
def test_the_example_runs_with_numpy_and_onnxruntime_alone(baked, load_net, bare_python, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    preprocessing = Preprocessing("image", mean=(0.3,), std=(0.2,))
    torch.manual_seed(0)
    labels = tuple(f"class {number}" for number in range(10))
    subject = ExportTarget("net", load_net("Net").eval(), preprocessing, ("image",), (images,), class_names=labels)
    network_export.write(subject, Form(18, 8, 1e-4, bake=baked), tmp_path / "net.onnx")
    script = example.write(tmp_path / "net.onnx")
    assert len(script.read_text().splitlines()) < 30
    np.save(tmp_path / "images.npy", images)
    assert subprocess.run([bare_python, "-c", "import torch"], capture_output=True).returncode != 0
    run = subprocess.run([bare_python, script, tmp_path / "images.npy"], capture_output=True, text=True, check=True)
    with torch.no_grad():
        best = subject.network(*preprocessing.apply((images,))).argmax(1).tolist()
    assert [line.rsplit(" ", 1)[0] for line in run.stdout.splitlines()] == [
        f"{number} class {index}" for number, index in enumerate(best)
    ]


def test_the_example_takes_a_picture_of_any_size_ids_and_ranked_classes(load_net, tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")  # noqa: N806
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    torch.manual_seed(0)
    network, preprocessing = load_net("Net").eval(), Preprocessing("image", mean=(0.3,), std=(0.2,))
    subject = ExportTarget("net", network, preprocessing, ("image",), (images,))
    Image.fromarray(np.kron(images[3, :, :, 0], np.ones((3, 2), np.uint8))).save(tmp_path / "large.png")
    shown = {}
    for baked, top_k in ((True, 0), (False, 2)):
        network_export.write(subject, Form(18, 8, 1e-4, bake=baked, top_k=top_k), tmp_path / "net.onnx")
        example.write(tmp_path / "net.onnx")
        command = [sys.executable, tmp_path / "infer.py", tmp_path / "large.png"]
        shown[baked] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    small = np.asarray(Image.open(tmp_path / "large.png").resize((8, 8), Image.Resampling.BILINEAR)).reshape(1, 8, 8, 1)
    with torch.no_grad():
        scores = network(*preprocessing.apply((small,)))[0]
    best = scores.topk(2)
    assert shown[True] == ["0", str(int(best.indices[0])), f"{best.values[0]:.3f}"]
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    assert shown[False] == " ".join(["0", *(f"{index} {value:.3f}" for index, value in pairs)]).split()


def test_the_example_feeds_the_types_that_the_graph_says(tmp_path):
    ids = np.arange(12).reshape(3, 4)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Embedding(20, 6), torch.nn.Flatten(), torch.nn.Linear(24, 3))
    target = ExportTarget("net", network.eval(), Preprocessing("none"), ("input_ids",), (ids,))
    network_export.write(target, Form(18, 8, 1e-4), tmp_path / "net.onnx")
    example.write(tmp_path / "net.onnx")
    np.save(tmp_path / "ids.npy", ids.astype(np.int32))
    command = [sys.executable, tmp_path / "infer.py", tmp_path / "ids.npy"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[1] for line in lines] == [str(int(best)) for best in network(torch.from_numpy(ids)).argmax(1)]
    alone = subprocess.run(command[:2], capture_output=True, text=True, check=False)
    assert (alone.returncode, alone.stdout) == (1, "")
    assert alone.stderr.startswith("Run net.onnx: python infer.py ")  # how to call it, and no traceback
    assert len(alone.stderr.splitlines()) == 1
    (tmp_path / "infer.py").write_text((tmp_path / "infer.py").read_text() + "print('mine')\n")
    assert example.write(tmp_path / "net.onnx") is None  # changed: it is the user's now
