"""ONNX files as others write them: raw pixels in, dictionaries out, other types, fixed batches."""

import json
import signal
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdexport.errors import KDExportError, SourceError
from kdexport.models.checkpoints import OnnxNetwork
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx import isolated
from kdexport.onnx.activation import metadata_of
from kdexport.onnx.sessions import OnnxSession, Unloaded

WEIGHT = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def save(path, nodes, inputs, outputs, metadata=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [item if not isinstance(item, tuple) else helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array([-1, 12]), "flat_shape")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def linear(source, target="logits"):
    return [
        helper.make_node("Reshape", [source, "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], [target]),
    ]


IMAGES = np.random.default_rng(1).integers(0, 255, (5, 2, 6, 1), dtype=np.uint8)


def test_raw_pixels_go_in_where_the_file_takes_them(tmp_path):
    nodes = [helper.make_node("Cast", ["x"], ["pixels"], to=TensorProto.FLOAT), *linear("pixels")]
    inputs, outputs = [("x", TensorProto.UINT8, ["n", 2, 6, 1])], [("logits", TensorProto.FLOAT, ["n", 3])]
    labels = {"kdexport.labels": json.dumps(["a", "b", "c"])}
    model = OnnxSession(save(tmp_path / "m.onnx", nodes, inputs, outputs, labels))
    assert model.takes_raw_images
    assert model.class_names == ("a", "b", "c")
    assert np.allclose(model.predict((IMAGES,)), IMAGES.reshape(5, 12) @ WEIGHT, atol=1e-2)


def test_the_preprocessing_in_the_file_comes_before_any_other(tmp_path):
    own = Preprocessing("image", mean=(0.2,), std=(0.5,))
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", 1, 2, 6])], [("logits", TensorProto.FLOAT, ["n", 3])]
    metadata = {"kdexport.preprocessing": json.dumps(own.to_json())}
    path = save(tmp_path / "m.onnx", linear("x"), inputs, outputs, metadata)
    expected = ((IMAGES.reshape(5, 12) / 255 - 0.2) / 0.5) @ WEIGHT
    assert np.allclose(OnnxSession(path, Preprocessing("image")).predict((IMAGES,)), expected, atol=1e-4)
    bare = OnnxSession(save(tmp_path / "bare.onnx", linear("x"), inputs, outputs))
    with pytest.raises(SourceError, match="doesn't say how an image becomes that"):
        bare.predict((IMAGES,))
    floats = np.ones((5, 1, 2, 6))  # float64 is given as the file's float32
    assert np.allclose(bare.predict((floats,)), floats.reshape(5, 12) @ WEIGHT, atol=1e-4)


def test_a_scikit_learn_file_gives_labels_and_dictionaries(tmp_path):
    nodes = [
        *linear("x", "scores"),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("ZipMap", ["shares"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    listed = helper.make_value_info("probabilities", helper.make_sequence_type_proto(kind))
    inputs = [("x", TensorProto.FLOAT, ["n", 12])]
    model = OnnxSession(save(tmp_path / "m.onnx", nodes, inputs, [("label", TensorProto.INT64, ["n"]), listed]))
    rows = np.random.default_rng(2).normal(size=(7, 12)).astype(np.float32)
    scores = rows @ WEIGHT
    found = model.predict((rows,))
    assert model.activation == "softmax"
    shares = np.exp(scores - scores.max(1, keepdims=True))
    assert np.allclose(np.exp(found), shares / shares.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("zipped", "labels", "names"),
    [
        (True, ["dog", "ant", "cow"], ("ant", "cow", "dog")),  # its dictionaries are read in the order of their keys
        (True, ["10", "2", "9"], ("10", "2", "9")),
        (False, ["dog", "ant", "cow"], ("dog", "ant", "cow")),
    ],
)
def test_a_scikit_learn_file_names_its_classes(zipped, labels, names, tmp_path):
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "shares"], domain="ai.onnx.ml", classlabels_strings=labels,
            coefficients=WEIGHT.T.flatten().tolist(), intercepts=[0.0] * 3, post_transform="SOFTMAX",
        )
    ]  # fmt: skip
    outputs = [("label", TensorProto.STRING, ["n"]), ("shares", TensorProto.FLOAT, ["n", 3])]
    if zipped:
        nodes.append(helper.make_node("ZipMap", ["shares"], ["maps"], domain="ai.onnx.ml", classlabels_strings=labels))
        kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        outputs[1] = helper.make_value_info("maps", helper.make_sequence_type_proto(kind))
    model = OnnxSession(save(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, ["n", 12])], outputs))
    rows = np.random.default_rng(2).normal(size=(7, 12)).astype(np.float32)
    assert model.class_names == names
    scores = (rows @ WEIGHT)[:, [labels.index(name) for name in names]]
    found = model.predict((rows,))
    assert np.allclose(found - found[:, :1], scores - scores[:, :1], atol=1e-4)


def test_a_fixed_batch_is_run_as_often_as_it_takes(tmp_path):
    inputs, outputs = [("x", TensorProto.FLOAT, [2, 12])], [("logits", TensorProto.FLOAT, [2, 3])]
    model = OnnxSession(save(tmp_path / "m.onnx", linear("x"), inputs, outputs))
    rows = np.random.default_rng(2).normal(size=(7, 12)).astype(np.float32)
    assert np.allclose(model.predict((rows,)), rows @ WEIGHT, atol=1e-5)


def test_files_and_inputs_that_do_not_fit(tmp_path):
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(SourceError, match="cannot be loaded by ONNX Runtime"):
        OnnxSession(tmp_path / "text.onnx")
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", 12])], [("logits", TensorProto.FLOAT, ["n", 3])]
    model = OnnxSession(save(tmp_path / "m.onnx", linear("x"), inputs, outputs))
    with pytest.raises(SourceError, match=r"takes 1 inputs \(x\); the data have 2"):
        model.predict((np.ones((2, 12)), np.ones((2, 12))))
    with pytest.raises(SourceError, match=r"does not take the data \(\[2, 5\] float32\)"):
        model.predict((np.ones((2, 5)),))
    flat = [
        helper.make_node("Reshape", ["x", "flat_shape"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["label"], axis=1),
    ]
    numbers = OnnxSession(save(tmp_path / "n.onnx", flat, inputs, [("label", TensorProto.INT64, ["n", 1])]))
    with pytest.raises(SourceError, match=r"gives no scores of shape \[batch, classes\]; it gives label"):
        numbers.predict((np.ones((2, 12)),))


@pytest.mark.parametrize("size", [None, "n", "", -1, 0])
def test_a_batch_dimension_that_is_left_unset_is_any_or_named(size, tmp_path):
    """Exporters write none, a name, -1 or 0; ONNX Runtime takes the last one for a size."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    inputs, outputs = [("x", TensorProto.FLOAT, [size, 12])], [("logits", TensorProto.FLOAT, [size, 3])]
    model = OnnxSession(save(tmp_path / "m.onnx", nodes, inputs, outputs))
    x = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    if size == 0:
        with pytest.raises(SourceError, match="its input x states a size of 0") as caught:
            model.predict((x,))
        assert "dynamic axis" in caught.value.hint
        return
    np.testing.assert_allclose(model.predict((x,)), x @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_of_several_outputs_the_one_with_as_many_columns_as_classes_is_scored(tmp_path):
    """Features that stand before the logits were taken for them."""
    nodes = [helper.make_node("Identity", ["x"], ["features"]), helper.make_node("MatMul", ["x", "w"], ["logits"])]
    outputs = [("features", TensorProto.FLOAT, ["n", 12]), ("logits", TensorProto.FLOAT, ["n", 3])]
    model = OnnxSession(save(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, ["n", 12])], outputs))
    x = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    assert model.predict((x,)).shape == (5, 12)  # no width is known
    model.width = 3
    np.testing.assert_allclose(model.predict((x,)), x @ WEIGHT, rtol=1e-5, atol=1e-5)


def test_weights_that_are_cut_off_are_named(tmp_path):
    """The runtime itself tells of a tensor that it could not deserialize."""
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", 12])], [("logits", TensorProto.FLOAT, ["n", 3])]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert OnnxSession(path).predict((np.ones((2, 12), np.float32),)).shape == (2, 3)
    whole = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KDExportError, match=r"m\.data, which is cut off") as caught:
        OnnxSession(path)
    assert caught.value.hint == "copy m.data again"


def test_the_runtime_prints_nothing_of_its_own(tmp_path, capfd):
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", "k"])], [("logits", TensorProto.FLOAT, ["n", 3])]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    model = OnnxSession(save(tmp_path / "m.onnx", nodes, inputs, outputs))
    with pytest.raises(SourceError, match="does not take the data"):
        model.predict((np.ones((2, 5), np.float32),))
    assert capfd.readouterr() == ("", "")


def scored(tmp_path, *tail, expects="sigmoid", output="out"):
    """A linear layer with operators after it, over random rows; the rows' logits, and the session."""
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", 12])], [(output, TensorProto.FLOAT, ["n", 3])]
    path = save(tmp_path / "m.onnx", [*linear("x"), *tail], inputs, outputs)
    rows = np.random.default_rng(2).normal(size=(9, 12)).astype(np.float32)
    return rows, rows @ WEIGHT, OnnxSession(path, expects=expects)


ONE_MINUS = [  # a sigmoid that some exporters write out: 1 / (1 + exp(-x))
    helper.make_node("Neg", ["logits"], ["minus"]),
    helper.make_node("Exp", ["minus"], ["exp"]),
    helper.make_node("Constant", [], ["one"], value_float=1.0),
    helper.make_node("Add", ["exp", "one"], ["sum"]),
    helper.make_node("Div", ["one", "sum"], ["out"]),
]


@pytest.mark.parametrize(
    "tail",
    [
        [helper.make_node("Sigmoid", ["logits"], ["out"])],
        [helper.make_node("Sigmoid", ["logits"], ["s"]), helper.make_node("Identity", ["s"], ["out"])],
        [
            helper.make_node("Sigmoid", ["logits"], ["s"]),
            helper.make_node("Cast", ["s"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["out"], to=TensorProto.FLOAT),
        ],
        ONE_MINUS,
    ],
    ids=["sigmoid", "identity", "half", "written out"],
)
def test_of_a_sigmoid_each_class_is_its_own_decision(tmp_path, tail):
    rows, logits, model = scored(tmp_path, *tail)
    found = model.predict((rows,))
    assert model.activation == "sigmoid"
    assert np.array_equal(found > 0, logits > 0)
    assert 0 < (found > 0).mean() < 1
    assert np.abs(1 / (1 + np.exp(-found)) - 1 / (1 + np.exp(-logits))).max() < 1e-3


def test_logits_stay_as_they_are_where_they_happen_to_lie_between_0_and_1(tmp_path):
    rows, _, model = scored(tmp_path, output="logits")
    small = rows * np.float32(1e-3)
    kept = small[(small @ WEIGHT).min(axis=1) >= 0]
    assert len(kept)
    assert np.allclose(model.predict((kept,)), kept @ WEIGHT)
    assert model.activation == "none"


def test_a_softmax_over_classes_cannot_score_several_labels(tmp_path):
    softmax = helper.make_node("Softmax", ["logits"], ["out"], axis=1)
    rows, _, model = scored(tmp_path, softmax)
    with pytest.raises(SourceError, match="gives a softmax over its classes, and the samples here have several"):
        model.predict((rows,))
    rows, logits, model = scored(tmp_path, softmax, expects="softmax")
    assert np.array_equal(model.predict((rows,)).argmax(1), logits.argmax(1))


@pytest.mark.parametrize("text", ["nothing", "[1, 2]", "[" * 5000])
def test_metadata_that_kdexport_did_not_write_are_named(tmp_path, text):
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", 1, 2, 6])], [("logits", TensorProto.FLOAT, ["n", 3])]
    model = OnnxSession(
        save(
            tmp_path / "m.onnx", linear("x"), inputs, outputs, {"kdexport.preprocessing": text, "kdexport.labels": "{}"}
        )
    )
    with pytest.raises(SourceError, match=r"kdexport\.preprocessing is not what kdexport writes"):
        model.predict((IMAGES,))
    with pytest.raises(SourceError, match=r"kdexport\.labels is not what kdexport writes"):
        _ = model.class_names


def long_loop(path, trips):
    number = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])], "body",
        [number("i", TensorProto.INT64, []), number("go", TensorProto.BOOL, []), number("v", TensorProto.FLOAT, None)],
        [number("on", TensorProto.BOOL, []), number("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", ""], ["logits"], body=body)], "g", [number("x", TensorProto.FLOAT, [1, 3])],
        [number("logits", TensorProto.FLOAT, None)], [numpy_helper.from_array(np.array(trips), "trips")],
    )  # fmt: skip
    graph.node[0].input.append("x")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_a_graph_that_does_not_end_is_interrupted(tmp_path):
    session = OnnxSession(long_loop(tmp_path / "loop.onnx", 30_000))

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            session((np.ones((1, 3), np.float32),))
    finally:
        signal.signal(signal.SIGALRM, before)
    interrupted = time.monotonic() - started
    session((np.ones((1, 3), np.float32),))  # and this is what it would have taken
    assert interrupted < (time.monotonic() - started) / 2


def test_a_file_of_a_stranger_runs_in_a_child_that_may_end(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("open('ran', 'w')")  # what lies in the working directory is not imported
    monkeypatch.chdir(tmp_path)
    if isolated._Worker._current is not None:
        isolated._Worker._current.end()
    nodes = [
        *linear("x", "scores"),
        helper.make_node("ZipMap", ["scores"], ["rows"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    listed = helper.make_value_info("rows", helper.make_sequence_type_proto(kind))
    said = {"kdexport.labels": '["a", "b", "c"]'}
    path = save(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, ["n", 12])], [listed], said)
    rows = np.random.default_rng(3).normal(size=(7, 12)).astype(np.float32)
    session = OnnxSession(path, open_with=isolated.IsolatedSession)
    assert (session.class_names, session.fixed_batch, session.input_names) == (("a", "b", "c"), None, ("x",))
    assert np.array_equal(session.predict((rows,)), OnnxSession(path).predict((rows,)))
    with pytest.raises(SourceError, match=r"m\.onnx does not take the data \(\[7, 5\] float32\): .*INVALID_ARGUMENT"):
        session.predict((rows[:, :5],))
    endless = OnnxSession(long_loop(tmp_path / "loop.onnx", 10**15), open_with=isolated.IsolatedSession)

    def end(*_):
        isolated._Worker._current._process.send_signal(signal.SIGSEGV)

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KDExportError, match=r"crashes on the file \(SIGSEGV\)"):
            endless.predict((np.ones((1, 3), np.float32),))
        teacher = OnnxNetwork(tmp_path / "loop.onnx")
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(KDExportError, match=r"crashes on the file \(SIGSEGV\)"):
            teacher(torch.ones(1, 3))

        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(KeyboardInterrupt):
            endless.predict((np.ones((1, 3), np.float32),))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert isolated._Worker._current is None
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SourceError, match="cannot be loaded by ONNX Runtime"):
        OnnxSession(tmp_path / "numpy.py", open_with=isolated.IsolatedSession)
    ended = isolated._Worker._current._process  # by something else, between two questions
    ended.kill()
    ended.wait()
    assert np.array_equal(session.predict((rows,)), OnnxSession(path).predict((rows,)))
    assert (ended.stdin.closed, ended.stdout.closed) == (True, True)


def test_metadata_are_read_without_loading_the_graph(tmp_path):
    said = {"kdexport.labels": '["é", "b"]', "empty": "", "long": "x" * 3000}
    path = save(
        tmp_path / "m.onnx",
        linear("x"),
        [("x", TensorProto.FLOAT, ["n", 12])],
        [("logits", TensorProto.FLOAT, ["n", 3])],
        said,
    )
    assert metadata_of(path) == said
    assert OnnxSession(path, session=Unloaded(path)).class_names == ("é", "b")
    path.write_bytes(path.read_bytes()[:-1])
    assert metadata_of(path) == metadata_of(tmp_path / "none.onnx") == {}
