import json
import os

import numpy as np
import pytest

from kdexport import results
from kdexport.bench import runner, worker_group
from kdexport.bench.process import Child
from kdexport.bench.stage import bench
from kdexport.data.samples import Dataset, Split
from kdexport.errors import DeviceError, KDExportError
from kdexport.machine import usable_cores
from kdexport.models.preprocessing import Preprocessing
from kdexport.onnx.describe import describe_file
from kdexport.results import BenchResult


def described(folder, *names):
    return [describe_file(folder / f"{name}.onnx") for name in names]


@pytest.fixture(scope="module")
def measured(models, quick, tmp_path_factory):
    """Two models at two batch sizes, scored on 200 samples, with raw samples and concurrent callers."""
    rng = np.random.default_rng(0)
    test = Split((rng.standard_normal((200, 64)).astype(np.float32),), rng.integers(0, 10, 200))
    data = Dataset("random", ("x",), tuple("0123456789"), test, test, test, Preprocessing("none"), {})
    samples = tmp_path_factory.mktemp("out") / "bench.samples.npz"
    settings = quick.model_copy(update={"batch_sizes": (1, 4), "streams": (1, 2)})
    files = described(models, "a", "b")
    return bench(files, settings, name="both", dataset=data, samples_file=samples), samples


def test_every_model_and_batch_size_is_measured(measured):
    result, _ = measured
    assert [(one.model, one.batch_size) for one in result.measurements] == [("a", 1), ("b", 1), ("a", 4), ("b", 4)]
    for one in result.measurements:
        latency = one.latency_ms
        assert 0 < latency.p50 < 50
        assert latency.p50_ci95[0] <= latency.p50 <= latency.p50_ci95[1]
        assert len(latency.rounds_p50) >= 3
        assert len(latency.quantiles) == 101
        assert one.placement == {"CPUExecutionProvider": 1.0}
        assert one.memory_mib.peak_rss is None or one.memory_mib.peak_rss > one.memory_mib.model >= 0
        assert one.memory_mib.device_peak is None
        assert one.energy_mj is None or one.energy_mj > 0
        assert one.load_ms > 0
        assert one.first_run_ms > 0
        assert one.throughput_by_streams["2"] > 0


def test_rounds_pair_the_models(measured):
    rounds = {len(one.latency_ms.rounds_p50) for one in measured[0].measurements if one.batch_size == 1}
    assert len(rounds) == 1


def test_accuracy_and_agreement_are_those_inside_onnx_runtime(measured):
    first, second = measured[0].models
    assert first.teacher_agreement.top1 == 1
    assert first.teacher_agreement.kl == pytest.approx(0, abs=1e-6)
    assert second.teacher_agreement.top1 < 0.5  # other random weights
    assert 0 <= first.accuracy_ci95[0] <= first.accuracy <= first.accuracy_ci95[1] <= 1


def test_raw_samples_give_the_figures_again(measured):
    result, path = measured
    with np.load(path) as archive:
        for one in result.measurements:
            key = f"{one.model}|{one.device}|{one.batch_size}|{one.threads}"
            assert archive[key].size == one.latency_ms.samples == archive[f"{key}|rounds"].sum()
            assert np.median(archive[key]) / 1e6 == pytest.approx(one.latency_ms.p50)


def test_the_result_is_one_json_document_and_back(measured):
    document = json.loads(results.dumps(measured[0]))
    assert results.from_json(BenchResult, document) == measured[0]


def test_a_percentile_that_the_count_cannot_carry_is_null():
    from kdexport.statistics import latency

    few = latency([np.full(21, 1_000_000)] * 3)
    assert (few.samples, few.p90, few.p95, few.p99) == (63, None, None, None)
    more = latency([np.full(44, 1_000_000)] * 3)
    assert (more.p90, more.p95, more.p99) == (1.0, 1.0, None)
    assert latency([np.full(221, 1_000_000)] * 3).p99 == 1.0


def test_a_model_that_cannot_run_fails_alone_with_its_reason(models, once):
    result = bench(described(models, "a", "broken", "b"), once, name="x")
    assert [one.model for one in result.measurements] == ["a", "b"]
    (failure,) = result.failures
    assert failure.model == "broken"
    assert "reshape" in failure.reason.lower()
    assert "onnxruntime_src" not in failure.reason


class Fragile(Child):
    """Model b's worker is killed in its second round, when its time is to be measured."""

    rounds = 0

    def send(self, **task):
        if task["do"] == "turn" and self.label == "b":
            Fragile.rounds += 1
            if Fragile.rounds == 2:
                os.kill(self.pid, 9)
        super().send(**task)


def test_a_killed_worker_costs_its_own_model_only(models, quick, monkeypatch):
    monkeypatch.setattr(worker_group, "Child", Fragile)
    result = bench(described(models, "a", "b"), quick, name="x")
    assert [one.model for one in result.measurements] == ["a"]
    assert "killed by SIGKILL" in result.failures[0].reason


def test_a_batch_beyond_the_memory_fails_alone(models, once):
    settings = once.model_copy(update={"batch_sizes": (1, 10**12)})
    result = bench(described(models, "a"), settings, name="x")
    assert [one.batch_size for one in result.measurements] == [1]
    assert result.failures[0].batch_size == 10**12
    assert "does not fit in memory" in result.failures[0].reason


def test_an_opset_that_is_too_new_says_which_is_known(models, once, tmp_path):
    import onnx

    model = onnx.load(str(models / "a.onnx"))
    model.opset_import[0].version = 99
    onnx.save(model, str(tmp_path / "new.onnx"))
    (failure,) = bench(described(tmp_path, "new"), once, name="x").failures
    assert "needs opset 99" in failure.reason
    assert "opsets up to" in failure.reason


def test_token_ids_are_fed_in_range(models, once):
    result = bench(described(models, "ids"), once, name="x", dims={"sequence": 7})
    assert not result.failures


def test_nothing_runs_before_all_that_can_be_refused_is_refused(models, quick, monkeypatch):
    for module in (runner, worker_group):
        monkeypatch.setattr(module, "child_for", None)  # a child would be a TypeError
    files = described(models, "a", "ids")
    with pytest.raises(KDExportError, match="'sequence'"):
        bench(files, quick, name="x")
    with pytest.raises(DeviceError):
        bench(files[:1], quick.model_copy(update={"devices": ("cpu", "cuda")}), name="x")
    with pytest.raises(KDExportError, match="two models are called"):
        bench(files[:1] * 2, quick, name="x")
    with pytest.raises(KDExportError, match="nothing to measure"):
        bench([], quick, name="x")


def test_more_threads_than_cores_are_told(models, once):
    threads = usable_cores() + 1
    result = bench(described(models, "a"), once.model_copy(update={"threads": (threads,)}), name="x")
    assert any(f"{threads} threads share" in warning for warning in result.measurements[0].warnings)


@pytest.mark.gpu
def test_cuda_takes_every_node_and_tells_copies_apart(models, quick):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDAExecutionProvider; needs onnxruntime-gpu and an NVIDIA GPU")
    result = bench(described(models, "a"), quick.model_copy(update={"devices": ("cpu", "cuda")}), name="x")
    cuda = result.measurements[1]
    assert cuda.placement == {"CUDAExecutionProvider": 1.0}
    assert cuda.memory_of_inputs == "cuda"
    assert set(cuda.transfer_ms) == {"host_to_device", "device_to_host"}
