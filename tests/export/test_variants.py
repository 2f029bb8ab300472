"""What no variant may do: change nothing unseen, cost the others, end the process, be judged in another arithmetic."""

import json
import os
import sys
import time
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kdexport.errors import KDExportError
from kdexport.export import accuracy_guard, fp16, int8, int8_dynamic, quantize, restored_operators, variants
from kdexport.export.accuracy_guard import VariantBuilder, output_error
from kdexport.export.restored_operators import runnable
from kdexport.export.variant_inputs import CalibrationData, VariantInputs, VariantSpec
from kdexport.onnx import metadata
from kdexport.onnx.isolated import IsolatedRunner
from kdexport.onnx.sessions import OnnxSession
from kdexport.precisions import PRECISIONS, Precision
from kdexport.progress import Silent

RNG = np.random.default_rng(0)


def graph(path, nodes, weights, shape, out, opset=18):
    """Write a small fp32 file with the input x and the output y, both with a dynamic batch."""
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *out])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    entry = metadata.model_file(
        "net", path, shown_as=path.name, precision="fp32", parameters=None, macs=None, parity=None
    )
    return path, entry


def normal(*shape, scale=0.3):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def node(operator, inputs, output, name=None, **attributes):
    return helper.make_node(operator, inputs.split(), [output], name=name or f"{output}/{operator}", **attributes)


def write(source, entry, precision, samples, labels=None, progress=None, **spec):
    data = CalibrationData(lambda: samples, lambda: samples, lambda: None if labels is None else (samples, labels))
    path = source.with_name(f"net.{precision}.onnx")
    wanted = VariantSpec(precision, **spec)
    return variants.write(source, entry, wanted, path, data, progress or Silent(), key=None), path


class Captured(Silent):
    """Keeps what is warned of."""

    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.fixture
def recurrent(tmp_path):
    """A GRU and a linear layer behind it."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "r"], ["", "h"], name="rnn/GRU", hidden_size=16),
        node("Squeeze", "h axes", "s"),
        node("MatMul", "s head", "y", "head/MatMul"),
    ]
    weights = {"w": normal(1, 48, 8), "r": normal(1, 48, 16), "head": normal(16, 5), "axes": np.array([0])}
    return graph(tmp_path / "net.onnx", nodes, weights, [6, 8], [5])


@pytest.fixture
def convolutions(tmp_path):
    """Convolutions alone, four maps of 8 x 8: no classifier."""
    nodes = [
        node("Conv", "x a", "c", "a/Conv", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r b", "y", "b/Conv"),
    ]
    return graph(tmp_path / "net.onnx", nodes, {"a": normal(8, 3, 3, 3), "b": normal(4, 8, 1, 1)}, [3, 8, 8], [4, 8, 8])


def test_operators_that_changed_are_counted_in_entry_metadata_and_notes(recurrent):
    model, path = write(*recurrent, "int8-dynamic", (normal(40, 6, 8, scale=1),))
    assert model.quantized == (1, 2)
    assert metadata.read(path)["kdexport.quantized"] == "1 of 2 operators"
    assert model.notes[0] == "1 of 2 operators quantized; in fp32: rnn/GRU"


def test_a_variant_that_changes_no_weight_is_refused(tmp_path, convolutions):
    with pytest.raises(KDExportError, match=r"would change no weight.* has Conv") as caught:
        write(*convolutions, "int8-dynamic", (normal(40, 3, 8, 8),))
    assert "int8 in its place" in caught.value.hint
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "r"], ["", "h"], name="rnn/GRU", hidden_size=16),
        node("Squeeze", "h axes", "y"),
    ]
    weights = {"w": normal(1, 48, 8), "r": normal(1, 48, 16), "axes": np.array([0])}
    only = graph(tmp_path / "gru.onnx", nodes, weights, [6, 8], [16])
    with pytest.raises(KDExportError, match=r"int8 changes no weight .*0 of 1 operators quantized.* GRU"):
        write(*only, "int8", (normal(40, 6, 8),))
    assert not (tmp_path / "net.int8.onnx").exists()


def test_what_is_no_classifier_is_guarded_by_its_output_error(convolutions):
    samples = (normal(60, 3, 8, 8, scale=1),)
    samples[0][:, 0] *= 50
    source, entry = convolutions
    labels = np.arange(60) % 3  # of the data; the network gives maps
    loose, path = write(source, entry, "int8", samples, labels)
    expected, actual = OnnxSession(source)(samples)[0], OnnxSession(path)(samples)[0]
    channels = [
        np.sqrt(((a - e) ** 2).mean() / (e**2).mean())
        for e, a in zip(np.moveaxis(expected, 1, 0), np.moveaxis(actual, 1, 0), strict=True)
    ]
    assert output_error((expected,), (actual,)) == pytest.approx(max(channels), rel=1e-6)
    assert any(f"output error {max(channels):.2g} of fp32's over 60" in note for note in loose.notes), loose.notes
    tight, path = write(source, entry, "int8", samples, labels, max_output_error=max(channels) * 0.9)
    assert output_error((expected,), OnnxSession(path)(samples)) <= max(channels) * 0.9
    assert any("returned to fp32" in note for note in tight.notes)
    with pytest.raises(KDExportError, match="loses more than max_output_error"):
        write(source, entry, "int8", samples, labels, max_output_error=1e-6)


def test_small_channels_count_in_the_output_error():
    """Boxes in pixels beside scores: scores that are all zero are an error of 1, however large the boxes are."""
    expected = np.concatenate([RNG.random((20, 4, 9)) * 640, RNG.random((20, 6, 9)) * 0.02], axis=1).astype(np.float32)
    zeroed = expected.copy()
    zeroed[:, 4:] = 0
    assert output_error((expected,), (zeroed,)) == pytest.approx(1.0)


def cosine_head(path):
    """Normalized features, their squares about 1e-8: below the smallest number of fp16."""
    nodes = [
        node("MatMul", "x fc", "h", "fc/MatMul"), node("Mul", "h scale", "g"), node("Mul", "g g", "sq"),
        node("ReduceSum", "sq axes", "sum", keepdims=1), node("Sqrt", "sum", "n"), node("Div", "g n", "u"),
        node("MatMul", "u head", "y", "head/MatMul"),
    ]  # fmt: skip
    weights = {"fc": normal(8, 16), "scale": np.float32(1e-4), "axes": np.array([-1]), "head": normal(16, 5, scale=3)}
    return graph(path, nodes, weights, [8], [5])


def log_probabilities(path):
    """log(softmax + 1e-9), which fp16 holds neither before the sum nor behind it."""
    nodes = [
        node("MatMul", "x fc", "h", "fc/MatMul"), node("Softmax", "h", "p", axis=-1), node("Add", "p eps", "q"),
        node("Log", "q", "y"),
    ]  # fmt: skip
    return graph(path, nodes, {"fc": normal(8, 5, scale=10), "eps": np.float32(1e-9)}, [8], [5])


def mean_of_a_plane(path):
    """The mean of 4096 values of about 30: their sum is beyond fp16."""
    nodes = [
        node("Conv", "x w b", "c", "c/Conv", pads=[1, 1, 1, 1]), node("ReduceMean", "c axes", "m", keepdims=0),
        node("Sub", "m shift", "d"), node("MatMul", "d head", "y", "head/MatMul"),
    ]  # fmt: skip
    weights = {
        "w": normal(4, 1, 3, 3, scale=3), "b": np.full(4, 30, np.float32), "axes": np.array([2, 3]),
        "shift": np.float32(30), "head": normal(4, 5),
    }  # fmt: skip
    return graph(path, nodes, weights, [1, 64, 64], [5])


@pytest.mark.parametrize(
    ("make", "shape", "kept"),
    [
        (cosine_head, (8,), {"sq/Mul", "sum/ReduceSum"}),
        (log_probabilities, (8,), {"p/Softmax", "y/Log"}),
        (mean_of_a_plane, (1, 64, 64), {"m/ReduceMean"}),
    ],
)
def test_fp16_holds_in_half_precision_arithmetic(make, shape, kept, tmp_path):
    source, entry = make(tmp_path / "net.onnx")
    samples = (normal(32, *shape, scale=1),)
    plain = fp16.fp16(quantize.load(source), ())
    with np.errstate(all="ignore"):
        before = ReferenceEvaluator(quantize.in_order(plain)).run(None, {"x": samples[0]})[0]
        model, path = write(source, entry, "fp16", samples)
        after = ReferenceEvaluator(onnx.load(path)).run(None, {"x": samples[0]})[0]
    expected = OnnxSession(source)(samples)[0]
    if make is not mean_of_a_plane:  # numpy adds up in fp32
        assert not np.allclose(before, expected, atol=0.1)
    assert np.isfinite(after).all()
    share = 0.2 if make is mean_of_a_plane else 0.02  # 30 taken from the mean leaves few of fp16's bits
    np.testing.assert_allclose(after, expected, rtol=0.02, atol=share * np.abs(expected).max())
    notes = " ".join(model.notes)
    assert all(name in notes for name in kept), notes
    assert model.parity.max_rel == pytest.approx(np.abs(after - expected).max() / np.abs(expected).max(), rel=0.5)


def test_a_file_that_states_the_types_of_its_weights_can_keep_some_in_fp32(tmp_path):
    """As PyTorch writes them: onnxruntime's converter changes the stated type of a weight that stays as it is."""
    source, entry = cosine_head(tmp_path / "net.onnx")
    stated = onnx.load(source)
    stated.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in stated.graph.initializer
    )
    onnx.save(stated, source)
    mixed = fp16.fp16(quantize.load(source), ("fc/MatMul", "head/MatMul"))
    types = {item.name: item.data_type for item in mixed.graph.initializer}
    assert (types["fc"], types["head"], types["scale"]) == (1, 1, 10)
    onnx.shape_inference.infer_shapes(mixed, strict_mode=True)
    samples = (normal(32, 8, scale=1),)
    assert write(source, entry, "fp16", samples)[0].parity.max_rel < 0.02


class _Abort:
    def __reduce__(self):
        return os.abort, ()


class _Sleep:
    def __reduce__(self):
        return time.sleep, (20,)


def test_a_crash_of_the_runtime_is_an_error_and_the_next_file_is_run(convolutions):
    runner = IsolatedRunner(convolutions[0])
    runner._model = _Abort()
    runner._token = -1
    with pytest.raises(KDExportError, match=r"crashes on the file \(SIGABRT\)"):
        runner((normal(2, 3, 8, 8),))
    samples = (normal(2, 3, 8, 8),)
    again = IsolatedRunner(convolutions[0])
    np.testing.assert_array_equal(again(samples)[0], OnnxSession(convolutions[0])(samples)[0])
    again._model, again._token, again._timeout_s = _Sleep(), -2, 0.1
    with pytest.raises(KDExportError, match=r"silent for 0\.1 s"):
        again(samples)


def test_nodes_in_the_way_stay_in_fp32_and_are_named():
    names = (*(f"blocks.{k}/{kind}" for k in range(3) for kind in ("MatMul", "Celu")), "head/Concat")
    tried = []

    def build(kept):
        tried.append(kept)
        if "head/Concat" not in kept:
            raise KDExportError("Concat cannot be quantized", hint="")
        return set(names) - set(kept)

    def run(model):
        if any("Celu" in name for name in model):
            raise KDExportError("no kernel for Celu", hint="")

    model, kept, why = runnable(VariantBuilder("toy", names, build, build), run)
    assert set(kept) == {"blocks.0/Celu", "blocks.1/Celu", "blocks.2/Celu", "head/Concat"}
    assert model == {"blocks.0/MatMul", "blocks.1/MatMul", "blocks.2/MatMul"}
    assert "Concat cannot be quantized" in why
    assert len(tried) < 20

    def never(_):
        raise KDExportError("nothing runs", hint="")

    with pytest.raises(KDExportError, match="nothing runs"):
        runnable(VariantBuilder("toy", names, lambda kept: set(kept), build), never)


def test_a_calibration_that_dies_gives_way_to_another(convolutions, monkeypatch):
    ranges = int8.ranges

    def dying(model, samples, method, feed):
        if method != "minmax":
            raise KDExportError("int8 could not be made: Too many bins for data range", hint="")
        return ranges(model, samples, method, feed)

    monkeypatch.setattr(int8, "ranges", dying)
    samples = (normal(40, 3, 8, 8),)
    for asked in ("auto", "entropy"):
        model, _ = write(*convolutions, "int8", samples, calibration=asked)
        assert "calibrated by minmax" in model.notes[0]
        assert any("calibration by entropy failed (Too many bins" in note for note in model.notes)


def test_a_toy_precision_is_a_function_and_a_line(convolutions, monkeypatch):
    """Weights rounded to bfloat16's bits, stored as fp16 and cast back."""

    def builder(given):
        model = quantize.load(given.source)
        names = tuple(quantize.layers(model))

        def make(kept):
            copied = onnx.ModelProto()
            copied.CopyFrom(model)
            for item in [*copied.graph.node]:
                if item.name in names and item.name not in kept:
                    weight = next(w for w in copied.graph.initializer if w.name == item.input[1])
                    weight.CopyFrom(
                        numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name)
                    )
                    copied.graph.node.append(helper.make_node("Cast", [weight.name], [f"{weight.name}_32"], to=1))
                    item.input[1] = f"{weight.name}_32"
            return copied

        return VariantBuilder("toy", names, make, lambda only: make(tuple(set(names) - set(only))))

    module = types.ModuleType("toy_precision")
    module.builder = builder
    monkeypatch.setitem(sys.modules, "toy_precision", module)
    monkeypatch.setitem(PRECISIONS, "toy", Precision("toy_precision:builder", 0.01))
    model, path = write(*convolutions, "toy", (normal(40, 3, 8, 8),))
    assert (model.precision, model.quantized, model.parity.passed) == ("toy", (2, 2), True)
    assert path.is_file()
    from kdexport.recipe import Export

    assert Export(quantize=("toy", "toy", "int8")).quantize == ("toy", "int8")
    with pytest.raises(ValueError, match=r"there is no precision 'int9'.*did you mean 'int8'"):
        Export(quantize=("int9",))


def test_every_quantized_operator_is_ranked(tmp_path):
    """An addition alone does the harm: one of its inputs is a thousand times the other."""
    nodes = [
        node("MatMul", "x a", "h", "a/MatMul"), node("Mul", "x large", "l"), node("MatMul", "l c", "k", "c/MatMul"),
        node("Add", "h k", "y", "sum/Add"),
    ]  # fmt: skip
    weights = {"a": normal(16, 8), "large": np.float32(100), "c": normal(16, 8)}
    source, _ = graph(tmp_path / "net.onnx", nodes, weights, [16], [8])
    samples = (normal(64, 16, scale=1),)
    given = VariantInputs(
        source,
        VariantSpec("int8", calibration="minmax"),
        CalibrationData(lambda: samples, lambda: samples, lambda: None),
        accuracy_guard.AccuracyGuard(source, samples, None),
        Silent(),
    )
    builder = int8.builder(given)
    whole = builder.without(())
    ranked = [name for unit in restored_operators.sensitivity(builder, given.guard, whole) for name in unit]
    assert {"a/MatMul", "c/MatMul", "sum/Add"} <= set(ranked)


def test_files_of_other_exporters_are_quantized(tmp_path):
    """No names, weights in Constant nodes, an opset of before scales per channel, a fixed batch."""
    weight = numpy_helper.from_array(normal(8, 4, 1, 1), "w")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    source, entry = graph(tmp_path / "net.onnx", nodes, {}, [4, 6, 6], [8, 6, 6], opset=11)
    samples = (normal(20, 4, 6, 6, scale=1),)
    model, path = write(source, entry, "int8", samples)
    assert model.quantized == (1, 1)
    assert output_error(OnnxSession(source)(samples), OnnxSession(path)(samples)) < 0.03
    assert int8_dynamic.DYNAMIC_OPERATORS  # convolutions are not among them


def export_given(path, *arguments):
    from typer.testing import CliRunner

    from kdexport.cli import app

    return CliRunner().invoke(app, ["export", str(path), *map(str, arguments), "--json"])


def test_any_onnx_file_is_quantized_and_left_as_it_is(tmp_path):
    """Its weights beside it, samples by its input's name, no labels."""
    source, _ = graph(
        tmp_path / "net.onnx",
        [node("MatMul", "x a", "h", "a/MatMul"), node("Relu", "h", "r"), node("MatMul", "r b", "y", "b/MatMul")],
        {"a": normal(64, 96), "b": normal(96, 5)},
        [64],
        [5],
    )
    model = onnx.load(source)
    onnx.save(model, source, save_as_external_data=True, location="net.onnx.data", size_threshold=100)
    before = source.read_bytes(), source.with_name("net.onnx.data").read_bytes()
    samples = normal(40, 64, scale=1)
    np.savez(tmp_path / "calibration.npz", x=samples)
    every = [word for precision in ("int8", "fp16", "int4", "int8-dynamic") for word in ("--quantize", precision)]
    done = export_given(source, *every, "--input", tmp_path / "calibration.npz")
    assert done.exit_code == 0, done.stderr
    made = json.loads(done.stdout)["models"]
    assert [item["quantized"] for item in made] == [[2, 2], [2, 2], [1, 2], [2, 2]]
    expected = OnnxSession(source)((samples,))
    for item in made:
        assert output_error(expected, OnnxSession(tmp_path / item["file"])((samples,))) < 0.25
    assert (source.read_bytes(), source.with_name("net.onnx.data").read_bytes()) == before
    again = export_given(source, "--quantize", "fp16")
    assert (again.exit_code, "there is a file already" in again.stderr) == (1, True)
    alone = export_given(source, "--quantize", "fp16", "--out", tmp_path / "half.onnx")
    assert json.loads(alone.stdout)["models"][0]["notes"][-1] == "judged on random inputs: no data were given"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ((), "is ONNX already", "--quantize int8 --input"),
        (("--quantize", "int8"), "needs samples to calibrate on", "--input calibration.npz"),
        (("--quantize", "int8", "--input", "wrong.npz"), "x is [4, 2, 8, 8]; the file takes ['batch', 3, 8, 8]", "x ["),
        (("--quantize", "int8", "--input", "names.npz"), "no array for the input x; it has z, q", "numpy.savez"),
        (("--quantize", "int8", "--opset", "17"), "--opset is for a network that becomes ONNX", "leave it out"),
    ],
)
def test_what_does_not_fit_a_given_file_is_told(arguments, message, hint, convolutions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("wrong.npz", x=np.zeros((4, 2, 8, 8), np.float32))
    np.savez("names.npz", z=np.zeros((4, 3, 8, 8), np.float32), q=np.zeros(3))
    done = export_given(convolutions[0], *arguments)
    told = " ".join(done.stderr.split())
    assert (done.exit_code, message in told, hint in told) == (1, True, True), told
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["net.onnx"]


def test_a_fixed_batch_is_kept(tmp_path):
    source, _ = graph(tmp_path / "net.onnx", [node("MatMul", "x a", "y")], {"a": normal(8, 5)}, [8], [5])
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, source)
    np.savez(tmp_path / "c.npz", anything=normal(30, 8, scale=1))
    done = export_given(source, "--quantize", "int8", "--quantize", "fp16", "--input", tmp_path / "c.npz")
    assert done.exit_code == 0, done.stderr
    assert {item["parity"]["samples"] for item in json.loads(done.stdout)["models"]} == {28}


def test_noise_beyond_half_of_the_signal_goes_back_to_fp32_unasked(tmp_path):
    """A Concat gives values of 1 and of 1000 one scale: in 8 bits the small ones are gone."""
    nodes = [node("MatMul", "x a", "h"), node("MatMul", "x b", "k"), node("Concat", "h k", "y", "join", axis=1)]
    weights = {"a": normal(16, 8), "b": normal(16, 8) * 1000}
    source, entry = graph(tmp_path / "net.onnx", nodes, weights, [16], [16])
    samples = (normal(40, 16, scale=1),)
    model, path = write(source, entry, "int8", samples)
    assert output_error(OnnxSession(source)(samples), OnnxSession(path)(samples)) < 0.1
    assert any("returned to fp32" in note and "join" in note for note in model.notes)
    assert model.quantized == (2, 2)


def test_tied_matrices_are_quantized_both(tmp_path):
    transpose = helper.make_node("Transpose", ["w"], ["t"], name="t", perm=[1, 0])
    nodes = [node("MatMul", "x w", "h"), transpose, node("MatMul", "h t", "y")]
    source, entry = graph(tmp_path / "net.onnx", nodes, {"w": normal(16, 24)}, [16], [16])
    samples = (normal(40, 16, scale=1),)
    model, path = write(source, entry, "int8", samples)
    assert model.quantized == (2, 2)
    assert output_error(OnnxSession(source)(samples), OnnxSession(path)(samples)) < 0.1


@pytest.mark.parametrize("batch", [None, 4])
def test_dynamic_quantization_tells_how_far_a_sample_depends_on_its_batch(batch, tmp_path):
    """One sample is a hundred times as large: beside it the others keep 1 of 100 levels, alone all."""
    nodes = [node("MatMul", "x w", "y", "layer/MatMul")]
    source, entry = graph(tmp_path / "net.onnx", nodes, {"w": np.eye(8, dtype=np.float32)}, [8], [8])
    if batch:
        model = onnx.load(source)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(model, source)
    samples = normal(4, 8, scale=1)
    samples[0] *= 100
    progress = Captured()
    model, path = write(source, entry, "int8-dynamic", (samples,), progress=progress)
    run = OnnxSession(path)
    together = run((samples,))[0]
    alone = np.concatenate([run((np.repeat(one[None], batch or 1, axis=0),))[0][:1] for one in samples])
    sizes = np.abs(alone).max(axis=1)
    expected = (np.abs(together - alone).max(axis=1) / np.maximum(sizes, np.median(sizes) / 10)).max()
    assert expected > 0.05
    assert model.parity.batch_effect == pytest.approx(expected, rel=1e-6)
    others = int((together.argmax(1) != alone.argmax(1)).sum())
    (told,) = [note for note in model.notes if "depend on what else is in its batch" in note]
    assert f"{others} of 4 decisions are others" in told
    assert any(told in line for line in progress.warnings) == (others > 0)


def test_static_files_do_not_depend_on_the_batch(recurrent):
    model, _ = write(*recurrent, "fp16", (normal(12, 6, 8, scale=1),))
    assert model.parity.batch_effect is None
    assert not any("batch" in note for note in model.notes)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4"])
def test_what_is_offered_in_place_of_a_variant_changes_a_weight(precision, tmp_path):
    """A GRU was told to take int8-dynamic in place of int8, which was refused in its turn."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "r"], ["", "h"], name="rnn/GRU", hidden_size=16),
        node("Squeeze", "h axes", "y"),
    ]
    weights = {"w": normal(1, 48, 8), "r": normal(1, 48, 16), "axes": np.array([0])}
    recurrent = graph(tmp_path / "net.onnx", nodes, weights, [6, 8], [16])
    samples = (normal(8, 6, 8, scale=1),)
    with pytest.raises(KDExportError) as caught:
        write(*recurrent, precision, samples)
    assert caught.value.hint.startswith(f"leave {precision} out of export.quantize, or take fp16 in its place")
    model, _ = write(*recurrent, "fp16", samples)
    assert model.quantized == (1, 1)


def test_a_variant_that_is_larger_than_fp32_says_so(tmp_path):
    small = graph(tmp_path / "small.onnx", [node("MatMul", "x w", "y", "w/MatMul")], {"w": normal(8, 8)}, [8], [8])
    large = graph(tmp_path / "large.onnx", [node("MatMul", "x w", "y", "w/MatMul")], {"w": normal(99, 99)}, [99], [99])
    for (source, entry), told in ((small, True), (large, False)):
        model, path = write(source, entry, "int8-dynamic", (normal(9, entry.inputs["x"][1], scale=1),))
        assert (path.stat().st_size > source.stat().st_size) == told
        assert any("larger than fp32's" in note for note in model.notes) == told


def test_a_sample_that_dwarfs_the_others_does_not_hide_their_error(tmp_path):
    """The output error was 0.02, and 38 of 40 decisions were others."""
    nodes = [node("Gemm", "x a b", "h"), node("Relu", "h", "r"), node("MatMul", "r c", "y")]
    weights = {"a": normal(8, 64), "b": normal(64), "c": normal(64, 4)}
    source, entry = graph(tmp_path / "net.onnx", nodes, weights, [8], [4])
    samples = normal(40, 8, scale=1)
    samples[0] *= 1e6
    progress = Captured()
    model, path = write(source, entry, "int8", (samples,), progress=progress)
    expected, actual = OnnxSession(source)((samples,))[0], OnnxSession(path)((samples,))[0]
    each = np.sqrt(((actual - expected) ** 2).mean(axis=1) / (expected**2).mean(axis=1))
    assert np.median(each) > 0.5
    (told,) = [note for note in model.notes if "of the middle sample's own" in note]
    assert f"; {np.median(each):.2g} of the middle sample's own" in told
    assert any("far larger hide" in line for line in progress.warnings)


def test_one_sample_and_samples_all_alike_are_told_as_that(convolutions):
    for count in (1, 6):
        with pytest.raises(KDExportError, match="would prove nothing") as caught:
            write(*convolutions, "int8", (np.repeat(normal(1, 3, 8, 8), count, axis=0),))
        assert "give samples that differ" in caught.value.hint


def test_weights_within_a_subgraph_are_named_as_that(tmp_path):
    branches = {
        f"{key}_branch": helper.make_graph(
            [node("MatMul", f"x {key}", key[0])],
            key,
            [],
            [helper.make_tensor_value_info(key[0], TensorProto.FLOAT, None)],
        )
        for key in ("then", "else")
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], name="s", keepdims=0),
        node("Greater", "s zero", "cond"),
        helper.make_node("If", ["cond"], ["y"], name="if", **branches),
    ]
    weights = {"then": normal(8, 4), "else": normal(8, 4), "zero": np.float32(0)}
    made = graph(tmp_path / "net.onnx", nodes, weights, [8], [4])
    with pytest.raises(KDExportError, match="its weights are in MatMul within a subgraph") as caught:
        write(*made, "int8", (normal(9, 8, scale=1),))
    assert caught.value.hint.endswith("or take fp16 in its place")


def test_a_rare_class_that_is_lost_is_named_though_the_accuracy_hardly_falls(tmp_path):
    """The rare class is told by a feature a thousandth as large as the other: 8 bits do not hold it."""
    w = np.array([[0.0, 0.0], [0.0, 1000.0]], np.float32)
    samples = np.stack([normal(200, scale=300), np.full(200, -0.05, np.float32)], axis=1)
    labels = np.zeros(200, np.int64)
    labels[:8], samples[:8, 1] = 1, 0.05
    source, entry = graph(tmp_path / "net.onnx", [node("MatMul", "x w", "y", "w/MatMul")], {"w": w}, [2], [2])
    progress = Captured()
    model, path = write(source, entry, "int8", (samples,), labels, progress)
    right = OnnxSession(path)((samples,))[0].argmax(1) == labels
    assert right.mean() > 0.95
    assert not right[:8].any()
    told = "accuracy 96.00 % on 200 validation samples, fp32 100.00 %; of class 1 0.0 % are found, by fp32 100.0 %"
    assert told in model.notes
    assert f"int8: {told}" in progress.warnings


def test_data_without_labels_calibrate_as_their_inputs_alone_do(convolutions, tmp_path):
    samples = normal(20, 3, 8, 8)
    np.savez(tmp_path / "data.npz", x_train=samples, x_test=samples[:4] * 100)
    np.savez(tmp_path / "inputs.npz", x=samples)
    made = []
    for name, flag, given in (("a", "--data", f"npz:{tmp_path / 'data.npz'}"), ("b", "--input", "inputs.npz")):
        out = tmp_path / f"{name}.onnx"
        given = given if flag == "--data" else str(tmp_path / given)
        told = export_given(convolutions[0], "--quantize", "int8", flag, given, "--out", str(out))
        assert told.exit_code == 0, told.stderr
        made.append(out.read_bytes())
    assert made[0] == made[1]
