"""Training that was done is not thrown away unasked."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from kdexport.artifacts import RunDirectory, read_epochs
from kdexport.distill import phase, trainer
from kdexport.distill.stage import distill
from kdexport.distill.state import Checkpoints, LoopState
from kdexport.errors import KDExportError, Terminated
from kdexport.progress import SILENT
from kdexport.recipe import Recipe

Tiny = Callable[..., Recipe]
SHORT = ("distill.baseline=false", "teacher.train.epochs=1", "distill.epochs=2")


def epochs(directory: RunDirectory) -> list[int]:
    return [line["epoch"] for line in read_epochs(directory.metrics) if line["phase"] == "student"]


def test_changed_settings_ask_and_both_answers_do_what_they_say(tmp_path: Path, tiny: Tiny) -> None:
    directory = RunDirectory(tmp_path)
    distill(tiny(*SHORT), directory)
    assert not list(tmp_path.glob("checkpoints/*/step-*.pt"))  # finished: they are gone
    first = load_file(directory.weights("student"))
    longer = tiny(*SHORT, "distill.epochs=3", "distill.lr=0.004")
    with pytest.raises(KDExportError) as caught:
        distill(longer, directory, on_change="ask")
    assert caught.value.message.startswith("student would be trained again from the start (epochs 2 -> 3, lr 0.008 ->")
    assert "--restart" in caught.value.hint
    assert "--extend" in caught.value.hint
    assert epochs(directory) == [0, 1]
    assert all(torch.equal(value, first[name]) for name, value in load_file(directory.weights("student")).items())

    extended = distill(longer, directory, on_change="extend")
    assert extended.networks[1].epochs == 3
    lines = [line for line in read_epochs(directory.metrics) if line["phase"] == "student"]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[2]["loss"] < lines[0]["loss"]
    again = distill(longer, directory)  # it is what the recipe asks for now
    assert again == extended
    with pytest.raises(KDExportError, match="has trained 3 epochs, and the recipe asks for 2"):
        distill(tiny(*SHORT), directory, on_change="extend")

    restarted = distill(longer, directory, on_change="restart")
    assert restarted == extended  # nothing has changed since
    fresh = distill(longer, RunDirectory(tmp_path / "fresh"))
    assert fresh.networks[1].weights_sha256 != extended.networks[1].weights_sha256
    distill(tiny(*SHORT), directory, on_change="restart")
    assert all(torch.equal(value, first[name]) for name, value in load_file(directory.weights("student")).items())


def test_hours_of_training_are_not_lost_to_any_change(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    distill(tiny(*SHORT), directory)
    monkeypatch.setattr(phase, "ASK_SECONDS", 0.0)
    with pytest.raises(KDExportError, match="student would be trained again") as caught:
        distill(tiny(*SHORT, "distill.terms.0.temperature=2.0"), directory)
    assert "--extend" not in caught.value.hint  # another loss is another training
    distill(tiny(*SHORT, "distill.terms.0.temperature=2.0"), directory, on_change="restart")


def test_sigterm_saves_and_a_changed_recipe_keeps_the_checkpoint_until_it_has_its_own(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    counted = LoopState.count

    def press(self: LoopState, *args: object) -> None:
        counted(self, *args)
        if self.total_steps == 2 and self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LoopState, "count", press)
    one_batch = (*SHORT, "distill.batch_size=1000", "teacher.train.batch_size=50")
    with pytest.raises(Terminated):
        distill(tiny(*one_batch), directory)
    monkeypatch.undo()
    (kept,) = (tmp_path / "checkpoints" / "student").glob("step-*.pt")
    with pytest.raises(KDExportError, match=r"1 epochs, .* would be lost"):
        distill(tiny(*one_batch, "distill.lr=0.001"), directory, on_change="ask")
    assert kept.exists()
    result = distill(tiny(*one_batch, "distill.lr=0.001"), directory, on_change="extend")
    assert epochs(directory) == [0, 1]
    assert result.networks[1].epochs == 2


def test_a_checkpoint_of_another_training_stays_until_the_new_one_is_written(tmp_path: Path) -> None:
    old, new = Checkpoints(tmp_path, "old"), Checkpoints(tmp_path, "new")
    old.save(900, {"value": 1})
    assert new.latest() is None
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000900.pt"]
    new.save(10, {"value": 2})
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000010.pt"]
    assert Checkpoints(tmp_path, "new").latest() == {"value": 2}


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"\x80\x04not a pickle", b"text"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(1, {"step": 1})
    (tmp_path / "step-000000002.pt").write_bytes(damage)
    torch.save({"other": 1}, tmp_path / "step-000000003.pt")
    torch.save([1], tmp_path / "step-000000004.pt")
    assert Checkpoints(tmp_path, "key").latest() == {"step": 1}


@pytest.mark.parametrize(
    "changes",
    [{}, {"settings": None}, {"settings": [3]}, {"network": None}, {"network": {"weights": float("inf")}}, {"key": {}}],
)
def test_a_damaged_record_of_training_is_none(changes, tmp_path: Path) -> None:
    done = {"key": "k", "identity": "i", "settings": {"epochs": 3}, "network": {"name": "student"}, **changes}
    context = SimpleNamespace(directory=RunDirectory(tmp_path))
    for known in (done, {name: value for name, value in done.items() if name not in changes}):
        assert phase._from_weights(context, known) is None


def test_a_damaged_result_is_made_again_and_the_log_is_whole_again(tmp_path: Path, tiny: Tiny) -> None:
    """A record, weights or epochs that were damaged: the run says so, and ends with the same bytes and epochs."""
    directory, recorder = RunDirectory(tmp_path), Recorder()
    recipe = tiny(*SHORT)
    distill(recipe, directory)
    bytes_of = {name: directory.weights(name).read_bytes() for name in ("teacher", "student")}
    log, record = directory.metrics.read_text(), tmp_path / "checkpoints" / "student" / "done.json"
    directory.metrics.write_text(log.replace('"epoch": 1', '"epoch": 7'))
    distill(recipe, directory)
    assert directory.metrics.read_text() == log
    record.unlink()
    (tmp_path / "checkpoints" / "teacher" / "done.json").unlink()  # its epochs are first, whatever is made again
    distill(recipe, directory)
    assert without_times(directory.metrics.read_text()) == without_times(log)
    directory.metrics.unlink()
    record.write_text(record.read_text().replace('"val_score": 0.', '"val_score": 0.9'))
    directory.weights("teacher").write_bytes(bytes_of["teacher"][:-1] + b"!")
    distill(recipe, directory, recorder)
    teacher, student = (line for line in recorder.warnings if line.endswith("made again"))
    assert teacher.startswith("teacher: teacher.safetensors is not what was written")
    assert student.startswith(f"student: {record} is damaged")
    assert {name: directory.weights(name).read_bytes() for name in bytes_of} == bytes_of
    assert without_times(directory.metrics.read_text()) == without_times(log)


def test_a_checkpoint_brings_the_epochs_of_its_log(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, counted = RunDirectory(tmp_path), LoopState.count

    def press(self: LoopState, *args: object) -> None:
        counted(self, *args)
        if self.total_steps == 3 and self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LoopState, "count", press)
    recipe = tiny(*SHORT, "distill.epochs=3", "distill.batch_size=1000", "teacher.train.batch_size=50")
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, directory)
    monkeypatch.undo()
    directory.metrics.write_text('{"phase": "stu')
    distill(recipe, directory)
    assert epochs(directory) == [0, 1, 2]
    assert [json.loads(line)["phase"] for line in directory.metrics.read_text().splitlines()] == ["teacher"] + 3 * [
        "student"
    ]


@pytest.mark.parametrize("several", [False, True])
def test_ctrl_c_of_a_terminal_and_of_torchrun_are_one_wish(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun passes Ctrl-C on to workers that the terminal has told already: the second ended them unsaved."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1") if several else monkeypatch.delenv("TORCHELASTIC_RUN_ID", False)
    with trainer._interrupt_flag() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        if several:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(trainer, "AT_ONCE_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


class Recorder:
    """A progress that keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def message(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    task = staticmethod(SILENT.task)


def without_times(log: str) -> list[dict[str, object]]:
    times = {"seconds", "samples_per_s", "teacher_from"}
    return [{key: value for key, value in json.loads(line).items() if key not in times} for line in log.splitlines()]


def test_several_processes_save_when_the_first_is_due_and_stop_when_any_is_told_to() -> None:
    """Each saved by its own clock, which only the first sets back: the sums of the others were in no checkpoint."""

    def agreed(stop: bool, due: bool, step: int = trainer.CHECK_EVERY, **about: object) -> tuple[bool, bool]:
        device = torch.device("cpu")
        known = {"num_processes": 2, "is_main_process": False, "device": device, "reduce": lambda wishes, _: wishes}
        return trainer._agreed((stop, due), SimpleNamespace(**{**known, **about}), step)

    assert agreed(True, True) == (True, False)
    assert agreed(False, True, is_main_process=True) == (False, True)
    assert agreed(True, True, step=trainer.CHECK_EVERY - 1) == (False, False)
    assert agreed(False, True, step=1, num_processes=1) == (False, True)
