"""The time of each operator: what is read of a profile, what the profiler costs, and which layer an operator is of."""

import dataclasses
import statistics

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdexport.bench import profile, stage
from kdexport.bench.profile import Calls, Cost, Operator
from kdexport.onnx.describe import describe_file
from kdexport.onnx.layers import GraphNode, Layers, family, graph_nodes, layer_of
from kdexport.results import BenchResult, from_json, to_json


def node_event(name, operator, start, duration, index=0):
    arguments = {"op_name": operator, "provider": "CPUExecutionProvider", "node_index": str(index)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": arguments}


def call_event(start, duration):
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def test_events_of_calls_are_summed_and_the_warm_up_is_left_out():
    events = [node_event("a", "Conv", 0, 900), call_event(0, 1000)]
    for call in range(4):
        start = 2000 + 100 * call
        events += [node_event("a", "Conv", start + 5, 40), node_event("b", "Relu", start + 50, 10)]
        events.append(call_event(start, 70))
    found = profile.read_events(events, [30_000] * 4, [80_000] * 4)
    assert [(one.name, one.us, one.events) for one in found.operators] == [("a", 40, 1), ("b", 10, 1)]
    assert (found.plain_us, found.profiled_us, found.between_us) == (30, 80, 30)


def test_calls_beside_other_work_do_not_count():
    events = []
    for call, duration in enumerate((10, 10, 500, 10)):
        events += [node_event("a", "Conv", 1000 * call, duration), call_event(1000 * call, duration + 5)]
    found = profile.read_events(events, [9_000, 9_000, 9_000, -70_000], [20_000, 20_000, -520_000, 20_000])
    assert found.operators[0].us == 10
    assert (found.plain_us, found.profiled_us) == (9, 20)


def test_a_subgraphs_operators_are_taken_out_of_what_runs_them():
    events = []
    for call in range(3):
        start = 1000 * call
        events += [node_event("inner", "Mul", start + 10 + 20 * step, 15, index=0) for step in range(3)]
        events += [
            node_event("loop", "Loop", start + 5, 80, index=7),
            node_event("after", "Add", start + 90, 4, index=8),
        ]
        events.append(call_event(start, 100))
    found = profile.read_events(events, [1_000] * 3, [110_000] * 3)
    assert {one.name: (one.us, one.events) for one in found.operators} == {
        "loop": (35, 1), "inner": (45, 3), "after": (4, 1),
    }  # fmt: skip
    assert found.between_us == 110 - 84
    assert [one.inner for one in found.operators if one.name == "loop"] == [3]
    assert (found.events, found.outer_events) == (5, 2)
    # What the profiler costs outside of the inner events lies in the loop's own.
    times, between = profile.times(found, Cost(1.0, 2.0))
    assert [times[name, kind, "CPUExecutionProvider"] for name, kind in (("loop", "Loop"), ("inner", "Mul"))] == [
        28,
        42,
    ]
    assert between == 26 - 4


def test_what_the_profiler_costs_comes_out_of_each_operator_and_of_what_lies_between():
    """Ten operators of 2 us and 5 us between all; each event costs 4 us within and 3 us outside."""
    model = Calls(25.0, 95.0, 35.0, tuple(Operator(f"n{at}", "Add", "CPU", 1.0, 6.0) for at in range(10)))
    chain = Calls(0.0, 700.0, 300.0, (Operator("n", "Sin", "CPU", 100.0, 400.0),))
    cost = profile.cost_of(model, chain)
    assert (cost.within, cost.outside) == pytest.approx((4, 3))
    found, between = profile.times(model, cost)
    assert list(found.values()) == pytest.approx([2.0] * 10)
    assert between == pytest.approx(5.0)


@pytest.mark.parametrize("profiled", [90.0, 1000.0])
def test_a_noisy_difference_is_held_to_what_the_chain_costs(profiled):
    model = Calls(100.0, profiled, 0.0, (Operator("n", "Conv", "CPU", 1.0, 100.0),))
    chain = Calls(0.0, 700.0, 0.0, (Operator("n", "Sin", "CPU", 100.0, 700.0),))
    cost = profile.cost_of(model, chain)
    assert cost.within + cost.outside == pytest.approx(3.5 if profiled == 90 else 14)


def test_an_operator_never_takes_less_than_nothing():
    model = Calls(1.0, 9.0, 0.5, (Operator("n", "Reshape", "CPU", 1.0, 3.0),))
    assert profile.times(model, Cost(5.0, 3.0)) == ({("n", "Reshape", "CPU"): 0.0}, 0.0)


def test_what_cheap_operators_cannot_give_back_comes_out_of_the_others():
    """An event costs 5 us: the first operator's claims 1 us only (it is written shorter), the others' 9 more."""
    model = Calls(8.0, 23.0, 0.0, tuple(Operator(f"n{at}", "Add", "CPU", 1.0, us) for at, us in enumerate((1, 10, 12))))
    found, between = profile.times(model, Cost(5.0, 0.0))
    assert [round(us, 6) for us in found.values()] == [0, 3, 5]
    assert sum(found.values()) + between == pytest.approx(model.plain_us)


def test_several_processes_make_one_profile_whose_sum_is_the_latency():
    def process(us):
        return Calls(us, us + 7, 0.0, (Operator("body/conv/Conv", "Conv", "CPU", 1.0, us + 7),))

    chain = Calls(0.0, 700.0, 0.0, (Operator("n", "Sin", "CPU", 100.0, 700.0),))
    found = profile.combined([(process(us), chain) for us in (80, 100, 3000)], 0.2, Layers([]))
    assert found.sum_ms == pytest.approx(0.1)
    assert sum(one.ms for one in found.operators) + found.between_ms == pytest.approx(0.2)
    assert found.profiler_us == pytest.approx(7)


def test_the_chain_is_a_model_that_computes_what_it_says():
    session = ort.InferenceSession(profile.chain_model(130), providers=["CPUExecutionProvider"])
    value = np.float32(0.5)
    for _ in range(130):
        value = np.sin(value)
    assert session.run(None, {"v0": np.full(1, 0.5, np.float32)})[0] == pytest.approx(value, rel=1e-5)
    onnx.checker.check_model(onnx.load_from_string(profile.chain_model(130)))


@pytest.mark.parametrize(
    ("name", "inputs", "scopes", "layer"),
    [
        ("layer1.0/Add", ("a", "b"), "", "layer1.0"),
        ("layer1.0.bn1/Conv", ("x", "layer1.0.conv1.weight"), "", "layer1.0.conv1"),
        ("/layer1/layer1.0/conv1/Conv", ("x", "onnx::Conv_193"), "", "layer1.0.conv1"),
        ("/encoder/layer.0/attention/self/query/MatMul", ("x", "w"), "", "encoder.layer.0.attention.self.query"),
        ("node_relu", ("x",), "['', 'features.0', 'features.0.2', 'relu']", "features.0.2"),
        ("node_add", ("x", "y"), "['', 'add']", ""),
        ("fc/MatMul", ("x", "fc.weight_quantized"), "", "fc"),
        ("Relu", ("x",), "", ""),
        ("", (), "", ""),
    ],
)
def test_a_nodes_layer_is_told_by_its_weight_its_scopes_or_its_name(name, inputs, scopes, layer):
    assert layer_of(name, inputs, scopes) == layer


@pytest.mark.parametrize(
    ("name", "operator", "layer"),
    [
        ("bn1/Conv", "FusedConv", "conv1"),
        ("fused bn1/Conv", "FusedConv", "conv1"),
        ("relu_nchwc", "Conv", "conv1"),  # convolution and activation in one, called after the activation's output
        ("relu_nchwc", "Relu", "relu"),
        ("relu_17_nchwc", "Conv", ""),  # no value of that name: not relu's
        ("x_QuantizeLinear", "QuantizeLinear", "conv1"),
        ("conv1.weight_DequantizeLinear", "DequantizeLinear", "conv1"),
        ("norm/Mul/LayerNormFusion/", "LayerNormalization", "norm"),
        ("ReorderOutput", "ReorderOutput", ""),
        ("", "Add", ""),
    ],
)
def test_an_operator_that_the_runtime_renamed_is_found(name, operator, layer):
    nodes = [
        GraphNode("x_QuantizeLinear", "QuantizeLinear", "", ("x",), ("xq",)),
        GraphNode("x_DequantizeLinear", "DequantizeLinear", "", ("xq",), ("xd",)),
        GraphNode("conv1.weight_DequantizeLinear", "DequantizeLinear", "", ("w",), ("wd",)),
        GraphNode("bn1/Conv", "Conv", "conv1", ("xd", "wd"), ("c",)),
        GraphNode("relu/Relu", "Relu", "relu", ("c",), ("relu",)),
        GraphNode("norm/Mul", "Mul", "norm", ("relu",), ("y",)),
    ]
    assert Layers(nodes).find(name, operator) == layer


def test_fused_and_quantized_forms_are_of_one_family():
    forms = ("QLinearConv", "FusedConv", "NhwcFusedConv", "ConvInteger", "Conv", "QGemm", "MatMulIntegerToFloat")
    assert [family(form) for form in forms] == ["Conv"] * 5 + ["Gemm", "MatMul"]
    assert family("DynamicQuantizeLinear") == "DynamicQuantizeLinear"
    assert (family("QuantizeLinear"), family("FusedMatMul"), family("DynamicQuantizeMatMul")) == (
        "QuantizeLinear", "MatMul", "MatMul",
    )  # fmt: skip


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Measure one large product between many operators that do next to nothing."""
    folder = tmp_path_factory.mktemp("profile")
    size, small = 1024, 60
    weight = numpy_helper.from_array(np.eye(size, dtype=np.float32), "body.big.weight")
    nodes = [helper.make_node("MatMul", ["x", "body.big.weight"], ["m"], name="body.big/MatMul")]
    nodes.append(helper.make_node("ReduceMax", ["m"], ["v0"], name="pool/ReduceMax", keepdims=0))
    nodes += [helper.make_node("Sin", [f"v{at}"], [f"v{at + 1}"], name=f"tail/Sin_{at}") for at in range(small)]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info(f"v{small}", TensorProto.FLOAT, [])],
        [weight],
    )  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    from kdexport.recipe import Bench

    settings = Bench(profile=True, rounds=1, min_seconds=0.05, max_seconds=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "ROUNDS", 1)
        return path, stage.bench([describe_file(path)], settings, name="net")


def test_bench_measures_the_time_of_each_operator(profiled):
    _, result = profiled
    (one,) = result.measurements
    found = one.profile
    assert len(found.operators) == 62
    assert sum(operator.ms for operator in found.operators) + found.between_ms == pytest.approx(one.latency_ms.p50)
    costliest = found.operators[0]
    assert (costliest.operator, costliest.layer, costliest.provider) == ("MatMul", "body.big", "CPUExecutionProvider")
    assert {operator.layer for operator in found.operators} == {"body.big", "pool", "tail"}
    # Under the profiler the 60 small ones take some 7 us each; without it less than half of one.
    tail = statistics.mean(operator.ms for operator in found.operators if operator.layer == "tail")
    assert tail < 0.002 < found.profiler_us / 1e3


def test_a_profile_comes_back_from_its_file(profiled):
    _, result = profiled
    assert from_json(BenchResult, to_json(result)) == result


def test_without_the_flag_there_is_no_profile(profiled):
    path, _ = profiled
    from kdexport.recipe import Bench

    plan = stage.plan_for([describe_file(path)], Bench())
    assert plan.targets[0].nodes == ()
    assert graph_nodes(path)[0] == GraphNode("body.big/MatMul", "MatMul", "body.big", ("x", "body.big.weight"), ("m",))


@pytest.mark.parametrize(
    ("name", "provider", "why"),
    [
        ("cuda", "CUDAExecutionProvider", "no profile: operators on cuda end after the profiler has looked"),
        ("web:wasm", "web:wasm", "no profile: a browser does not tell the time of operators (web:wasm)"),
    ],
)
def test_what_cannot_be_profiled_is_told_and_not_guessed(name, provider, why):
    from kdexport.bench.plan import Condition, Device, Settings, Target

    if name.startswith("web"):
        from kdexport.bench.web.devices import web_device

        provider = web_device(name).provider
    condition = Condition(Device(name, provider), 1, (1,))
    asked = dataclasses.replace(Settings(), profile=True)
    assert profile.measure(Target("net", "net.onnx", {}), {}, condition, asked, 1.0) == (None, (why,))
    assert profile.measure(Target("net", "net.onnx", {}), {}, condition, Settings(), 1.0) == (None, ())
