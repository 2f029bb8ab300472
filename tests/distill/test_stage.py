"""The distill stage on real digits: what it writes, when it trains again, and that nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdexport.artifacts import RunDirectory, read_epochs
from kdexport.data.datasets import load_data
from kdexport.distill import logging, logit_cache, stage
from kdexport.distill.batches import predict_all
from kdexport.distill.setup import label_setup
from kdexport.distill.stage import distill
from kdexport.distill.state import LoopState
from kdexport.errors import KDExportError
from kdexport.export.stage import export
from kdexport.models.loading import load_model
from kdexport.progress import Silent
from kdexport.recipe import Recipe
from kdexport.results import DistillResult

Tiny = Callable[..., Recipe]


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, message: str) -> None:
        self.said.append(message)

    warn = message


def phases(directory: RunDirectory) -> list[tuple[str, int]]:
    return [(line["phase"], line["epoch"]) for line in read_epochs(directory.metrics)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> tuple[Path, DistillResult]:
    """The run directory of the tiny recipe as it is, for tests to read or to copy, and its result."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, distill(tiny(), RunDirectory(folder))


@pytest.fixture
def copied(trained: tuple[Path, DistillResult], tmp_path: Path) -> RunDirectory:
    """A copy of it of one's own."""
    return RunDirectory(shutil.copytree(trained[0], tmp_path / "copied"))


def test_a_run_writes_what_the_contract_lists(trained: tuple[Path, DistillResult]) -> None:
    folder, result = trained
    directory = RunDirectory(folder)
    assert [network.name for network in result.networks] == ["teacher", "student", "student-plain"]
    for network in result.networks:
        weights = load_file(folder / network.weights)
        assert network.parameters == sum(
            value.numel() for name, value in weights.items() if "running" not in name and "num_batches" not in name
        )
    assert json.loads(directory.stage("distill").read_text())["splits"] == result.splits
    lines = read_epochs(directory.metrics)
    assert phases(directory) == [("teacher", 0), ("teacher", 1)] + [
        (phase, epoch) for phase in ("student", "student-plain") for epoch in range(3)
    ]
    student = [line for line in lines if line["phase"] == "student"]
    assert [line["teacher_from"] for line in student] == ["online", "online", "cache"]
    for line in student:
        assert set(line["terms"]) == {"labels", "soft_targets"}
        assert line["loss"] == pytest.approx(0.1 * line["terms"]["labels"] + 0.9 * line["terms"]["soft_targets"])
        assert 0 <= line["val_accuracy"] <= 1
        assert 0 <= line["top1_agreement"] <= 1
        assert 0 <= line["train_accuracy"] <= 1
        assert line["train_kl"] > 0
        assert set(line["val_terms"]) == {"labels", "soft_targets"}
        assert line["samples_per_s"] > 0
    assert all(line["teacher_from"] is None for line in lines if line["phase"] != "student")


def test_the_epoch_whose_weights_were_kept_holds_what_they_score(tmp_path: Path, tiny: Tiny) -> None:
    directory = RunDirectory(tmp_path)
    recipe = tiny("distill.keep='last'", "distill.baseline=false")
    student = distill(recipe, directory).networks[1]
    kept = [line for line in read_epochs(directory.metrics) if line.get("kept")]
    assert [(line["phase"], line["epoch"]) for line in kept] == [("teacher", 1), ("student", 2)]
    dataset = load_data(recipe.data, recipe.seed, directory.cache)
    model = load_model("student", recipe.student, dataset, tmp_path / student.weights)
    logits = predict_all(model.network, model.preprocessing, dataset.test, torch.device("cpu"))
    assert kept[1]["test_accuracy"] == pytest.approx(np.mean(logits.argmax(1) == dataset.test.labels))
    assert kept[1]["test_teacher_accuracy"] == kept[0]["test_accuracy"]
    assert 0 < kept[1]["test_top1_agreement"] <= 1


def test_two_runs_with_one_seed_give_the_same_bytes(
    tmp_path: Path, tiny: Tiny, trained: tuple[Path, DistillResult]
) -> None:
    distill(tiny(), RunDirectory(tmp_path / "b"))
    distill(tiny("seed=1"), RunDirectory(tmp_path / "c"))
    a, b, c = ((folder / "student.safetensors").read_bytes() for folder in (trained[0], tmp_path / "b", tmp_path / "c"))
    assert a == b
    assert a != c


def test_a_changed_recipe_trains_again_only_what_it_touches(
    copied: RunDirectory, tiny: Tiny, trained: tuple[Path, DistillResult]
) -> None:
    directory, recorder, first = copied, Recorder(), trained[1]
    again = distill(tiny(), directory, recorder)
    assert again == first
    assert sum("unchanged" in said for said in recorder.said) == 3
    recorder.said.clear()
    warmer = distill(tiny("distill.terms.0.temperature=2.0"), directory, recorder)
    assert sorted(said.split(":")[0] for said in recorder.said if "unchanged" in said) == ["student-plain", "teacher"]
    assert warmer.networks[1].weights_sha256 != first.networks[1].weights_sha256
    assert len(phases(directory)) == len(set(phases(directory))) == 8


def test_weights_that_were_changed_by_another_hand_are_made_again(copied: RunDirectory, tiny: Tiny) -> None:
    directory = copied
    trained = directory.weights("student").read_bytes()
    directory.weights("student").write_bytes(b"not what was trained")
    distill(tiny(), directory)
    assert directory.weights("student").read_bytes() == trained


def start(recipe: Recipe, out: Path) -> subprocess.Popen[str]:
    recipe.write(out / "given.toml")
    command = [sys.executable, "-m", "kdexport", "distill", str(out / "given.toml"), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_epochs(process: subprocess.Popen[str], directory: RunDirectory, count: int) -> None:
    limit = time.monotonic() + 60
    while len(read_epochs(directory.metrics)) < count and process.poll() is None:
        assert time.monotonic() < limit, "the training did not get under way"
        time.sleep(0.005)


def test_kill_9_and_ctrl_c_cost_nothing(tmp_path: Path, tiny: Tiny) -> None:
    recipe = tiny("teacher.train.epochs=8", "distill.epochs=8", "distill.baseline=false", "distill.ema_decay=0.9")
    distill(recipe, RunDirectory(tmp_path / "whole"))
    directory = RunDirectory(tmp_path / "killed")
    for epochs, how in ((3, signal.SIGKILL), (11, signal.SIGINT)):
        process = start(recipe, directory.root)
        wait_for_epochs(process, directory, epochs)
        os.kill(process.pid, how)
        said = process.communicate(timeout=60)[1]
        if how == signal.SIGINT and process.returncode != 0:  # 0: it was done before the signal came
            assert process.returncode == 130
            assert f"go on with: kdexport distill {tmp_path}" in " ".join(said.split())
            assert "Traceback" not in said
        else:
            assert process.returncode in (0, -how)
    distill(recipe, directory)
    assert phases(directory) == phases(RunDirectory(tmp_path / "whole"))
    for network in ("teacher", "student"):
        whole, killed = (RunDirectory(tmp_path / name).weights(network).read_bytes() for name in ("whole", "killed"))
        assert whole == killed, network


def test_a_loss_that_is_not_finite_stops_with_where_and_what_to_do(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(KDExportError) as caught:
        distill(tiny("teacher.train.lr=1e30"), RunDirectory(tmp_path))
    assert "loss of teacher is not finite" in caught.value.message
    assert "learning rate" in caught.value.message
    assert "lower lr" in caught.value.hint
    assert not (tmp_path / "teacher.safetensors").exists()


def test_class_counts_that_differ_stop_before_anything_is_trained(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(KDExportError, match=r"student gives .* 7.* 10 classes"):
        distill(tiny("student.args.num_classes=7"), RunDirectory(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_teacher_without_weights_would_teach_noise(tmp_path: Path) -> None:
    recipe = Recipe.parse(
        {
            "name": "x",
            "data": {"source": "digits"},
            "teacher": {"model": "torchvision:resnet18"},
            "student": {"model": "torchvision:resnet18"},
        }
    )
    with pytest.raises(KDExportError, match=r"teach noise|does not take the data") as caught:
        distill(recipe, RunDirectory(tmp_path))
    assert caught.value.hint


def test_a_student_learns_from_the_teacher_alone(tmp_path: Path, tiny: Tiny) -> None:
    """label_weight = 0: the labels of the training split are not looked at."""
    recipe = tiny("distill.label_weight=0.0", "distill.baseline=false", "distill.epochs=6", "teacher.train.epochs=6")
    distill(recipe, RunDirectory(tmp_path))
    lines = [line for line in read_epochs(tmp_path / "metrics.jsonl") if line["phase"] == "student"]
    assert set(lines[-1]["terms"]) == {"soft_targets"}
    assert lines[-1]["top1_agreement"] > lines[0]["top1_agreement"]


def test_the_student_file_loads_into_the_users_own_class(trained: tuple[Path, DistillResult]) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("nets", Path(__file__).parents[2] / "models" / "digits" / "nets.py")
    assert spec is not None
    assert spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    network = nets.Student(width=4)
    network.load_state_dict(load_file(trained[0] / "student.safetensors"))
    assert np.isfinite(network.eval()(torch.zeros(1, 1, 8, 8)).detach().numpy()).all()


FEATURE_TERMS = ("hint", "attention", "similarity", "relational", "crd", "review", "cosine")


def test_features_are_compared_and_leave_no_trace_in_the_student(
    tmp_path: Path, tiny: Tiny, trained: tuple[Path, DistillResult]
) -> None:
    terms = ", ".join(f'{{ method = "{name}", weight = 0.1 }}' for name in FEATURE_TERMS)
    recorder = Recorder()
    distill(tiny("distill.epochs=2", f"distill.terms=[{terms}]"), RunDirectory(tmp_path / "a"), recorder)
    with_taps, without = (load_file(folder / "student.safetensors") for folder in (tmp_path / "a", trained[0]))
    assert {name: value.shape for name, value in with_taps.items()} == {k: v.shape for k, v in without.items()}
    lines = [line for line in read_epochs(tmp_path / "a" / "metrics.jsonl") if line["phase"] == "student"]
    assert [line["teacher_from"] for line in lines] == ["online", "online"]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert any("the teacher runs at every step" in said for said in recorder.said)
    for name in FEATURE_TERMS:
        assert lines[1]["terms"][name] != lines[0]["terms"][name] > 0
        assert any(line.startswith(f"{name}: student ") for line in recorder.said)
    lines = read_epochs(tmp_path / "a" / "metrics.jsonl")
    kept = next(line for line in lines if line["phase"] == "student" and line.get("kept"))
    told = {"labels", *FEATURE_TERMS} - {"crd"}  # which compares a sample with what it remembers of it
    assert set(kept["terms"]) == told | {"crd"}
    for terms_of_split in (kept["val_terms"], kept["test_terms"]):
        assert set(terms_of_split) == told
        assert all(0 < value < 100 * kept["terms"][name] for name, value in terms_of_split.items())


def test_an_interrupted_run_with_features_ends_with_the_same_bytes(tmp_path: Path, tiny: Tiny, monkeypatch) -> None:
    recipe = tiny("distill.terms=[{ method = 'crd', weight = 0.1, negatives = 64 }, { method = 'hint' }]")
    distill(recipe, RunDirectory(tmp_path / "whole"))
    written = logging.MetricsLog.append

    def stop(self: logging.MetricsLog, entry: dict[str, object]) -> None:
        written(self, entry)
        if (entry["phase"], entry["epoch"]) == ("student", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(logging.MetricsLog, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, RunDirectory(tmp_path / "broken"))
    monkeypatch.undo()
    distill(recipe, RunDirectory(tmp_path / "broken"))
    whole, broken = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


def test_a_layer_that_is_not_there_shows_before_the_student_trains(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(KDExportError, match="no layer 'blockz'") as caught:
        distill(tiny("distill.terms=[{ method = 'hint', student_layer = 'blockz' }]"), RunDirectory(tmp_path))
    assert "it has" in caught.value.hint
    assert not (tmp_path / "student.safetensors").exists()


MULTI_LABEL = """
import numpy as np
from sklearn.datasets import load_digits

def several():
    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)
    facts = np.stack([digits.target % 2 == 0, digits.target < 5, digits.target % 3 == 0], axis=1).astype(np.float32)
    return {"train": (images[:1400], facts[:1400]), "test": (images[1400:], facts[1400:])}
"""


def test_samples_with_several_labels(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "data.py").write_text(MULTI_LABEL)
    data = f"data.source={tmp_path / 'data.py'}:several"
    single = RunDirectory(tmp_path / "single")
    with pytest.raises(KDExportError, match="multi-label") as caught:
        distill(tiny(data), single)
    assert "binary_soft_targets" in caught.value.hint
    assert not single.weights("teacher").exists()  # said before anything is trained
    directory = RunDirectory(tmp_path / "run")
    distill(tiny(data, "distill.terms=[{ method = 'binary_soft_targets' }]", "teacher.train.epochs=4"), directory)
    lines = [line for line in read_epochs(directory.metrics) if line["phase"] == "teacher"]
    assert lines[-1]["val_score"] > 0.65


GREEDY = """
import torch
from nets import Student as Plain


class Student(Plain):
    # Stands for a device whose memory holds so many samples and no more.
    room = {room}

    def forward(self, image):
        if self.training and len(image) > self.room:
            raise torch.OutOfMemoryError(f"tried to allocate room for {{len(image)}} samples")
        return super().forward(image)
"""


def greedy(folder: Path, room: int) -> str:
    nets = Path(__file__).parents[2] / "models" / "digits" / "nets.py"
    (folder / "nets.py").write_text(nets.read_text())
    (folder / "greedy.py").write_text(GREEDY.format(room=room))
    return f"student.model={folder / 'greedy.py'}:Student"


def test_too_little_memory_halves_the_micro_batch_once_and_says_so(tmp_path: Path, tiny: Tiny) -> None:
    """388 samples at 64 a batch are 7 batches of 56 at most."""
    recorder = Recorder()
    recipe = tiny(greedy(tmp_path, room=40), "distill.batch_size=64", "distill.baseline=false")
    result = distill(recipe, RunDirectory(tmp_path / "run"), recorder)
    assert any("going on with 28 at a time" in said for said in recorder.said)
    assert result.networks[1].epochs == 3


def test_far_too_little_memory_stops_with_the_figure_to_set(tmp_path: Path, tiny: Tiny) -> None:
    recipe = tiny(greedy(tmp_path, room=20), "distill.batch_size=64", "distill.baseline=false")
    with pytest.raises(KDExportError) as caught:
        distill(recipe, RunDirectory(tmp_path / "run"))
    assert "micro_batch_size = 14" in caught.value.hint
    distill(
        tiny(greedy(tmp_path, 20), "distill.micro_batch_size=14", "distill.baseline=false"),
        RunDirectory(tmp_path / "run"),
    )


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path, tiny: Tiny) -> None:
    recipe = tiny("distill.epochs=8", "teacher.train.epochs=6", "data.fraction=1.0", "distill.baseline=false")
    distill(recipe, RunDirectory(tmp_path / "one"))
    recipe.write(tmp_path / "given.toml")
    two = tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "kdexport",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "distill", str(tmp_path / "given.toml"), "--out", str(two), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert [network["name"] for network in json.loads(done.stdout)["networks"]] == ["teacher", "student"]
    one_log, two_log = (read_epochs(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    # The schedule goes by steps: the same rates mean the same number of steps, and so the same total batch.
    assert [(line["phase"], line["epoch"], line["lr"]) for line in one_log] == [
        (line["phase"], line["epoch"], line["lr"]) for line in two_log
    ]
    assert two_log[-1]["val_accuracy"] == pytest.approx(one_log[-1]["val_accuracy"], abs=0.1)
    assert len(list((two / "cache").glob("teacher-*.json"))) >= 1


def test_each_generation_is_taught_by_the_one_before(tmp_path: Path, tiny: Tiny) -> None:
    directory, recorder = RunDirectory(tmp_path), Recorder()
    once = distill(tiny("distill.baseline=false", "distill.epochs=2"), directory)
    thrice = distill(tiny("distill.baseline=false", "distill.epochs=2", "distill.generations=3"), directory, recorder)
    assert [network.name for network in thrice.networks] == ["teacher", "student"]
    assert [phase for phase, epoch in phases(directory) if epoch == 1][-3:] == ["student-1", "student-2", "student"]
    assert recorder.said.count("teacher: unchanged, not trained again") == 1
    first, second = (load_file(tmp_path / f"student-{number}.safetensors") for number in (1, 2))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert once.networks[1].weights_sha256 != thrice.networks[1].weights_sha256


def test_several_teachers_speak_as_one(tmp_path: Path, tiny: Tiny) -> None:
    nets = Path(__file__).parents[2] / "models" / "digits" / "nets.py"
    also = (
        f'teacher.also=[{{ model = "{nets}:Teacher", args = {{ width = 6 }}, train = {{ epochs = 1 }}, weight = 2.0 }}]'
    )
    directory = RunDirectory(tmp_path / "run")
    result = distill(tiny("distill.baseline=false", "teacher.combine=confidence", also), directory)
    assert [network.name for network in result.networks] == ["teacher", "student"]
    assert [(score.name, round(score.weight, 3)) for score in result.teachers] == [
        ("teacher", 0.333),
        ("teacher-2", 0.667),
    ]
    assert all(0 < score.agreement.top1 <= 1 for score in result.teachers)
    assert {phase for phase, _ in phases(directory)} == {"teacher", "teacher-2", "student"}
    with pytest.raises(KDExportError, match="several teachers") as caught:
        distill(tiny("distill.baseline=false", also, "distill.terms=[{ method = 'hint' }]"), directory)
    assert "members.0" in caught.value.hint
    layer = "distill.terms=[{ method = 'hint', teacher_layer = 'members.1.stages' }]"
    distill(tiny("distill.baseline=false", "distill.epochs=1", also, layer), directory)


def test_ctrl_c_at_the_last_step_of_an_epoch_loses_nothing_of_it(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch an epoch: every step is the last of its epoch."""
    recipe = tiny("distill.batch_size=1000", "teacher.train.epochs=1", "distill.baseline=false")
    distill(recipe, RunDirectory(tmp_path / "whole"))
    counted = LoopState.count

    def press(self: LoopState, *args: object) -> None:
        counted(self, *args)
        if self.total_steps == 3 and self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LoopState, "count", press)
    directory = RunDirectory(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, directory)
    monkeypatch.undo()
    distill(recipe, directory)
    assert phases(directory) == phases(RunDirectory(tmp_path / "whole"))
    whole, broken = (RunDirectory(tmp_path / name).weights("student").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


def test_ctrl_c_ends_the_filling_of_the_cache(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_cache, "CHUNK", 50)
    filled = logit_cache.TeacherCache._fill
    chunks: list[int] = []

    def press(self: logit_cache.TeacherCache, view: int, chunk: int, compute: object) -> None:
        filled(self, view, chunk, compute)
        chunks.append(chunk)
        if len(self._mine) == 8:  # 388 training samples; the splits that are validation_on are smaller
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(logit_cache.TeacherCache, "_fill", press)
    with pytest.raises(KeyboardInterrupt):
        distill(tiny("distill.baseline=false", "teacher.train.epochs=1"), RunDirectory(tmp_path))
    assert chunks[-1] == 0


def test_the_accuracy_that_is_told_is_that_of_the_weights_that_are_kept(tmp_path: Path, tiny: Tiny) -> None:
    directory = RunDirectory(tmp_path)
    training = ("teacher.train.epochs=5", "teacher.train.keep='last'", "teacher.train.lr=0.05")
    result = distill(tiny(*training, "distill.baseline=false", "distill.epochs=1"), directory)
    lines = [line for line in read_epochs(directory.metrics) if line["phase"] == "teacher"]
    assert result.networks[0].val_score == lines[-1]["val_accuracy"]
    assert lines[-1]["kept"]


def test_a_baseline_that_diverges_costs_neither_student_nor_teacher(
    copied: RunDirectory, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of distillation were lost with the training that it is only compared with."""

    def too_fast(context, name, *rest):
        setup = label_setup(context, name, *rest)
        return replace(setup, training=setup.training.model_copy(update={"lr": 1e30}))

    monkeypatch.setattr(stage, "label_setup", too_fast)
    (copied.root / "student-plain.safetensors").unlink()
    shutil.rmtree(copied.checkpoints / "student-plain")
    recorder = Recorder()
    made = distill(tiny(), copied, recorder)
    assert [network.name for network in made.networks] == ["teacher", "student"]
    (failure,) = made.failures
    assert failure.model == "student-plain"
    assert re.search(r"(loss|weights) of student-plain (is|are) not finite", failure.reason)
    assert any("student-plain is left out" in line for line in recorder.said)
    exported = export(tiny("export.quantize=[]"), made, copied)
    assert exported.failures == (failure,)
    assert {model.name for model in exported.models} == {"teacher", "student"}
    monkeypatch.undo()
    assert not distill(tiny(), copied).failures  # tried again next time
