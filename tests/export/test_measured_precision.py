"""auto: what is cheapest by the profiles, what is tried, what is taken, and that the limit holds."""

import io
import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from kdexport.cli import app
from kdexport.cli.tables import exported
from kdexport.errors import KDExportError
from kdexport.export import stage, variants
from kdexport.export.measured_precision import FP32, INT8, NARROW
from kdexport.export.precision_cut import Costs, Unit, Units, cheapest, regions, units_of
from kdexport.export.variant_inputs import CalibrationData, VariantSpec
from kdexport.onnx import metadata
from kdexport.onnx.sessions import OnnxSession
from kdexport.precisions import checked_or_fp32
from kdexport.progress import Silent
from kdexport.results import ExportResult, OperatorTime, Profile, TimedOn

RNG = np.random.default_rng(3)
CONVOLUTIONS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Four convolutions with a Relu behind each, and samples."""
    nodes, weights, value = [], {}, "x"
    for name in CONVOLUTIONS:
        weights[f"{name}.weight"] = (RNG.standard_normal((4, 4, 3, 3)) * 0.2).astype(np.float32)
        nodes.append(
            helper.make_node("Conv", [value, f"{name}.weight"], [f"{name}0"], name=f"{name}/Conv", pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"{name}0"], [f"{name}1"], name=f"{name}/Relu"))
        value = f"{name}1"
    shape = ["batch", 4, 6, 6]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path_factory.mktemp("chain") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    entry = metadata.model_file("net", path, shown_as="net.onnx", precision="fp32", parameters=9, macs=9, parity=None)
    return path, entry, (RNG.standard_normal((24, 4, 6, 6)).astype(np.float32),)


class Priced:
    """Times files by a price list: of each convolution in fp32 and in int8, and of each quantizer between them."""

    on = TimedOn("cpu", 1, 1, "here", "a CPU", ())
    profiles = True

    def __init__(self, fp32, int8, quantizer=1.0, noise=0.001, half=30.0):
        self.fp32, self.int8 = dict(zip(CONVOLUTIONS, fp32, strict=True)), dict(zip(CONVOLUTIONS, int8, strict=True))
        self.quantizer, self.noise, self.half = quantizer, noise, half
        self.rng, self.timed = np.random.default_rng(0), []

    def __call__(self, sizes, fixed_batch):
        assert (sizes, fixed_batch) == ({}, None)
        return self

    def operators(self, path):
        """The milliseconds of each operator that a runtime would run."""
        model = onnx.load(path)
        constants = {item.name: item for item in model.graph.initializer}
        if any(item.data_type == TensorProto.FLOAT16 for item in constants.values()):
            return {("half", "Cast"): self.half}
        found, before = {}, False
        for node in model.graph.node:
            if node.op_type == "Conv":
                name, quantized = node.name[0], node.input[1] not in constants
                found[node.name, "QLinearConv" if quantized else "Conv"] = (self.int8 if quantized else self.fp32)[name]
                if quantized != before:
                    kind = "QuantizeLinear" if quantized else "DequantizeLinear"
                    found[f"{node.input[0].split('_')[0]}_{kind}", kind] = self.quantizer
                before = quantized
        if before:
            found["d1_DequantizeLinear", "DequantizeLinear"] = self.quantizer
        return found

    def turns(self, files, *, rounds, seconds):
        self.timed.append(list(files))
        each = {name: sum(self.operators(path).values()) for name, path in files.items()}
        spread = {name: 1 + self.noise * self.rng.standard_normal((rounds, 5)) for name in files}
        return {name: tuple(map(tuple, 1e6 * each[name] * spread[name])) for name in files}, {}

    def profile(self, file, p50_ms):
        operators = [OperatorTime(name, kind, "", "CPU", ms) for (name, kind), ms in self.operators(file).items()]
        return Profile(tuple(operators), 0.0, p50_ms, 1.0, p50_ms)

    def best(self):
        """The least of all choices, each counted by hand: the price and the convolutions in int8."""
        every = []
        for choice in itertools.product((False, True), repeat=len(CONVOLUTIONS)):
            price = sum(
                (self.int8 if int8 else self.fp32)[name] for name, int8 in zip(CONVOLUTIONS, choice, strict=True)
            )
            changes = sum(one != other for one, other in zip((False, *choice), (*choice, False), strict=True))
            every.append((price + changes * self.quantizer, choice))
        price, choice = min(every)
        return price, {name for name, int8 in zip(CONVOLUTIONS, choice, strict=True) if int8}


def made(chain, tmp_path, timer, labels=None, **spec):
    source, entry, samples = chain
    validation = None if labels is None else (samples, labels)
    data = CalibrationData(lambda: samples, lambda: samples, lambda: validation)
    wanted = VariantSpec("auto", calibration="minmax", **spec)
    path = tmp_path / "net.auto.onnx"
    return variants.write(source, entry, wanted, path, data, Silent(), key=None, timer=timer), path


def in_int8(model):
    return {name[0] for name, precision in model.measured_precision.operators.items() if precision == "int8"}


@pytest.mark.parametrize(
    ("fp32", "int8"),
    [
        ((9, 9, 2, 2), (3, 3, 9, 9)),
        ((2, 9, 9, 2), (9, 2, 2, 9)),
        ((9, 2, 2, 9), (2, 9, 9, 2)),
        ((2, 2, 9, 9), (8, 8, 3, 3)),
    ],
)
def test_the_fastest_choice_of_all_is_found(chain, tmp_path, fp32, int8):
    timer = Priced(fp32, int8)
    model, path = made(chain, tmp_path, timer)
    price, expected = timer.best()
    assert in_int8(model) == expected
    assert sum(timer.operators(path).values()) == pytest.approx(price)
    assert model.measured_precision.chosen.startswith("mixed")
    assert model.quantized == (len(expected), 4)
    assert model.precision == metadata.read(path)["kdexport.precision"] == "auto"
    row = next(one for one in model.measured_precision.tried if one.name == model.measured_precision.chosen)
    assert row.speedup == pytest.approx(sum(fp32) / price, rel=0.01)
    assert row.speedup_ci95[0] < row.speedup < row.speedup_ci95[1]
    assert row.within_limit is True


def test_fp32_stays_where_nothing_is_faster_and_is_called_so(chain, tmp_path):
    model, path = made(chain, tmp_path, Priced((2, 2, 2, 2), (3, 3, 3, 3)))
    assert model.measured_precision.chosen == FP32
    assert model.quantized == (0, 4)
    assert any("fp32 itself, nothing else was faster" in note for note in model.notes)
    assert model.parity.max_abs == 0
    assert set(model.measured_precision.operators.values()) == {"fp32"}
    assert path.is_file()


def test_int8_whole_is_taken_where_it_is_fastest(chain, tmp_path):
    model, path = made(chain, tmp_path, Priced((9, 9, 9, 9), (3, 3, 3, 3)))
    assert model.measured_precision.chosen == INT8
    source, entry, samples = chain
    data = CalibrationData(lambda: samples, lambda: samples, lambda: None)
    other = tmp_path / "net.int8.onnx"
    variants.write(source, entry, VariantSpec("int8", calibration="minmax"), other, data, Silent(), key=None)
    np.testing.assert_array_equal(OnnxSession(path)(samples)[0], OnnxSession(other)(samples)[0])


def test_int8_as_a_whole_is_int8s_own_graph(tmp_path):
    """Squeezenet's was 2.7 % slower: what is quantized but takes no quantized value was excluded."""
    weights = {name: (RNG.standard_normal((4, 4, 1, 1)) * 0.3).astype(np.float32) for name in ("w", "v", "u")}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], name="p", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["b"], name="b"),
        helper.make_node("Conv", ["p", "v"], ["c"], name="c"),
        helper.make_node("Concat", ["b", "c"], ["d"], name="d", axis=1),
        helper.make_node("MaxPool", ["d"], ["e"], name="e", kernel_shape=[2, 2]),
        helper.make_node("Sigmoid", ["e"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 3, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    source = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), source)
    entry = metadata.model_file("net", source, shown_as="n", precision="fp32", parameters=9, macs=9, parity=None)
    samples = (RNG.standard_normal((24, 4, 8, 8)).astype(np.float32),)
    data = CalibrationData(lambda: samples, lambda: samples, lambda: None)
    made_by = {}
    for kind in ("int8", "auto"):
        spec, path = VariantSpec(kind, calibration="minmax"), tmp_path / f"net.{kind}.onnx"
        model = variants.write(source, entry, spec, path, data, Silent(), key=None, timer=Whole())
        made_by[kind] = [node.SerializeToString() for node in onnx.load(path).graph.node]
    assert model.measured_precision.chosen == INT8
    assert made_by["auto"] == made_by["int8"]


def test_a_gain_within_the_noise_is_none(chain, tmp_path):
    """Half a percent by the profiles, where turns differ by ten."""
    timer = Priced((9, 9, 9.0, 9.2), (3, 3, 3, 8.1), quantizer=0.05, noise=0.3)
    model, _ = made(chain, tmp_path, timer)
    assert model.measured_precision.chosen in (INT8, FP32)


def test_a_disturbed_round_of_screening_costs_no_candidate(chain, tmp_path):
    """Seen on a busy machine: one round of the best file was seven times as slow."""

    class Disturbed(Priced):
        def turns(self, files, *, rounds, seconds):
            found, failures = super().turns(files, rounds=rounds, seconds=seconds)
            slow = {
                name: (tuple(7 * turn for turn in one[0]), *one[1:]) if name.startswith("mixed") else one
                for name, one in found.items()
            }
            return found if rounds > 3 else slow, failures

    timer = Disturbed((9, 9, 2, 2), (3, 3, 9, 9))
    assert in_int8(made(chain, tmp_path, timer)[0]) == timer.best()[1]


def test_the_limit_holds_whatever_is_faster(chain, tmp_path):
    source, _, samples = chain
    free, _ = made(chain, tmp_path, Priced((9, 9, 2, 9), (3, 3, 9, 3)))
    limit = 0.006
    model, path = made(chain, tmp_path, Priced((9, 9, 2, 9), (3, 3, 9, 3)), max_output_error=limit)
    expected, actual = (np.asarray(OnnxSession(file)(samples)[0], np.float64) for file in (source, path))
    channels = np.sqrt(((actual - expected) ** 2).mean(axis=(0, 2, 3)) / (expected**2).mean(axis=(0, 2, 3)))
    assert channels.max() <= limit
    assert len(in_int8(model)) < len(in_int8(free))


def test_fp16_is_measured_once_and_taken_where_it_is_fastest(chain, tmp_path):
    slow = Priced((9, 9, 9, 9), (3, 3, 3, 3))
    made(chain, tmp_path, slow)
    assert sum("fp16" in timed for timed in slow.timed) == 1
    model, _ = made(chain, tmp_path, Priced((9, 9, 9, 9), (8, 8, 8, 8), half=5.0))
    assert model.measured_precision.chosen == "fp16"
    assert set(model.measured_precision.operators.values()) == {"fp16"}


def test_a_device_without_profiles_compares_whole_files_and_says_so(chain, tmp_path):
    timer = Priced((9, 9, 2, 2), (3, 3, 9, 9))
    timer.profiles = False
    model, _ = made(chain, tmp_path, timer)
    assert model.measured_precision.chosen in (FP32, INT8, NARROW)
    assert any("whole files alone" in note for note in model.notes)


def test_nothing_that_measures_is_an_error_with_a_hint(chain, tmp_path):
    with pytest.raises(KDExportError, match="measured time") as raised:
        made(chain, tmp_path, None)
    assert "kdexport export" in raised.value.hint
    assert not list(tmp_path.iterdir())


def test_the_cut_is_the_cheapest_of_all_choices():
    """Against every choice, counted one by one, on random graphs."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        count = int(rng.integers(2, 8))
        pairs = [(one, other) for one in range(count) for other in range(one + 1, count) if rng.random() < 0.5]
        units = Units(
            tuple(Unit(f"n{at}", (f"n{at}",)) for at in range(count)),
            {pair: int(rng.integers(1, 50)) for pair in pairs},
            {},
            {},
        )
        costs = Costs(list(rng.random(count)), list(rng.random(count)), element=0.01)
        costs.fixed = {at for at in range(count) if rng.random() < 0.2}

        def price(in_fp32, units=units, costs=costs):
            own = sum(costs.fp32[at] if at in in_fp32 else costs.int8[at] for at in range(len(units.units)))
            between = sum(size for (one, other), size in units.edges.items() if (one in in_fp32) != (other in in_fp32))
            return own + between * costs.element

        every = [
            frozenset(at for at, bit in enumerate(choice) if bit) for choice in itertools.product((0, 1), repeat=count)
        ]
        least = min(price(choice) for choice in every if costs.fixed <= choice)
        found = cheapest(units, costs)
        assert costs.fixed <= found
        assert price(found) == pytest.approx(least)


def test_units_hold_what_follows_an_operator_and_regions_hang_together(chain):
    units = units_of(onnx.shape_inference.infer_shapes(onnx.load(chain[0])), {"batch": 2})
    assert [unit.nodes for unit in units.units] == [(f"{name}/Conv", f"{name}/Relu") for name in CONVOLUTIONS]
    assert units.edges == {(0, 1): 2 * 144, (1, 2): 2 * 144, (2, 3): 2 * 144}
    assert regions(units, frozenset({1, 2})) == [(0,), (1, 2), (3,)]


class Whole:
    """Times whole files: int8 is twice as fast as anything else."""

    on = TimedOn("cpu", 1, 1, "here", "a CPU", ("avx2",))
    profiles = False

    def __init__(self):
        self.timed = 0

    def __call__(self, sizes, fixed_batch):
        return self

    def turns(self, files, *, rounds, seconds):
        self.timed += 1
        return {name: ((1e6 / (1 + (name == INT8)),) * 3,) * rounds for name in files}, {}


def test_a_run_that_goes_on_measures_nothing_twice(make_run, tmp_path):
    recipe, distilled, directory = make_run(
        tmp_path / "run", networks=("student",), quantize=["auto"], calibration="minmax", calibration_samples=16
    )
    timer = Whole()
    first = stage.export(recipe, distilled, directory, Silent(), timer)
    count, written = timer.timed, (directory.root / "student.auto.onnx").stat().st_mtime_ns
    assert [model.name for model in first.models] == ["student", "student.auto"]
    assert first.models[1].measured_precision.chosen == INT8
    assert first.models[1].measured_precision.on == Whole.on
    (directory.root / "student.onnx").unlink()  # as if the export had been killed
    again = stage.export(recipe, distilled, directory, Silent(), timer)
    assert again.models[1] == first.models[1]
    assert (timer.timed, (directory.root / "student.auto.onnx").stat().st_mtime_ns) == (count, written)
    elsewhere = recipe.model_copy(update={"bench": recipe.bench.model_copy(update={"threads": (2,)})})
    stage.export(elsewhere, distilled, directory, Silent(), timer)
    assert timer.timed > count


def test_a_limit_that_int8_cannot_keep_leaves_what_can(chain, tmp_path):
    """No operator in int8 keeps this limit, and fp16 does: int8's reason stands in the table."""
    model, _ = made(chain, tmp_path, Priced((9, 9, 9, 9), (3, 3, 3, 3)), max_output_error=1e-6)
    assert model.measured_precision.chosen == FP32
    row = next(one for one in model.measured_precision.tried if one.name == INT8)
    assert row.speedup is None
    assert "max_output_error = 1e-06" in row.told


def test_a_file_that_cannot_be_timed_is_out_and_told(chain, tmp_path):
    class Fails(Priced):
        def turns(self, files, *, rounds, seconds):
            found, _ = super().turns(files, rounds=rounds, seconds=seconds)
            died = {name: "died" for name in files if name.startswith(INT8)}
            return {name: one for name, one in found.items() if name not in died}, died

    model, _ = made(chain, tmp_path, Fails((9, 9, 9, 9), (3, 3, 3, 3), half=99))
    assert model.measured_precision.chosen == FP32
    assert next(one for one in model.measured_precision.tried if one.name == INT8).told.endswith("died")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantize", "int8", "--threads", "2"], "--threads is where auto measures"),
        (["--quantize", "auto", "--device", "gpu9"], "no device called 'gpu9'"),
        (["--quantize", "auto", "--batch-size", "0"], "batch_sizes"),
    ],
)
def test_faults_of_the_flags_are_named_and_nothing_is_written(chain, tmp_path, arguments, words):
    source, _, samples = chain
    np.savez(tmp_path / "x.npz", x=samples[0])
    command = [
        "export",
        str(source),
        "--input",
        str(tmp_path / "x.npz"),
        "--out",
        str(tmp_path / "out.onnx"),
        *arguments,
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert words in " ".join(done.output.split())
    assert not (tmp_path / "out.onnx").exists()


def test_the_search_names_auto_as_no_precision_of_its_own():
    with pytest.raises(ValueError, match=r"take precision = \[\"fp32\", \"int8\"\]"):
        checked_or_fp32(["auto"])


def test_what_was_tried_is_shown_in_the_terminal(chain, tmp_path):
    from rich.console import Console

    model, _ = made(chain, tmp_path, Priced((9, 9, 2, 2), (3, 3, 9, 9)))
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(exported(ExportResult("net", (model,)), "kdexport bench net.onnx", 150))
    shown = console.export_text()
    assert "net.auto.onnx: cpu, 1 thread, batch 1 (a CPU)" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert any(line[:1] == ["fp32"] and "1.00×" in line for line in lines)
    assert any(line[:1] == ["mixed"] and "1.83×" in line and "file;" in line for line in lines)
