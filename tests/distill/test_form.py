"""How a network is run: obeyed where the recipe says, tried where it doesn't, kept to after a kill, without a trace."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from kdexport.artifacts import RunDirectory
from kdexport.distill import form, logging
from kdexport.distill.stage import distill
from kdexport.distill.state import Checkpoints
from kdexport.models.preprocessing import Preprocessing
from kdexport.progress import Silent
from kdexport.recipe import Recipe, Training
from kdexport.results import TrainingForm

Tiny = Callable[..., Recipe]
STUDENT_ONLY = ("distill.baseline=false", "distill.epochs=2", "teacher.train.epochs=1")


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    warn = say


def job(training: Training, macs: int | None = 1000, taps: object = None) -> SimpleNamespace:
    """Two batches of 8x8 images, as far as a trial looks at them."""
    images = torch.randint(0, 256, (6, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = SimpleNamespace(inputs=(images,), indices=range(6))
    batches = SimpleNamespace(epoch=lambda _: iter([batch, batch]), per_epoch=2, split=range(12))
    preprocessing = Preprocessing("image", mean=(0.5,), std=(0.5,))
    return SimpleNamespace(
        phase="student", training=training, batches=batches, preprocessing=preprocessing, taps=taps, macs=macs
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
    return nn.Sequential(*layers)


def decide(folder: Path, training: Training, **changes: object) -> tuple[TrainingForm, list[str], nn.Module]:
    recorder, whole = Recorder(), network()
    found = form.chosen(whole, job(training, **changes), Accelerator(cpu=True), Checkpoints(folder, "key"), recorder)
    return found, recorder.said, whole


def quick(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[str, float]) -> None:
    """Let every trial find these figures, in place of the clock's."""
    monkeypatch.setitem(form.WORTH_A_TRIAL, "cpu", 0.0)
    real = form._Trial.step

    def step(self: object, layout: str) -> Callable[[], None]:
        pass_once = real(self, layout)
        pass_once()
        pass_once.milliseconds = milliseconds[layout]  # type: ignore[attr-defined]
        return pass_once

    monkeypatch.setattr(form._Trial, "step", step)
    monkeypatch.setattr(form, "in_turns", lambda steps, _: [each.milliseconds for each in steps])


def test_a_short_training_is_not_tried(tmp_path: Path) -> None:
    for macs in (1000, None):
        assert decide(tmp_path / str(macs), Training(), macs=macs)[:2] == (TrainingForm(), [])


def test_the_recipe_is_obeyed_without_a_trial(tmp_path: Path) -> None:
    for said, layout in ((True, "channels_last"), (False, "contiguous")):
        found, words, _ = decide(tmp_path / layout, Training(channels_last=said))
        assert found == TrainingForm(layout)
        assert words == []


def test_a_trial_leaves_no_trace_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(form.WORTH_A_TRIAL, "cpu", 0.0)
    monkeypatch.setattr(form, "SLICE_SECONDS", 0.0)
    untouched = {name: value.clone() for name, value in network().state_dict().items()}
    found, words, whole = decide(tmp_path, Training())
    assert set(found.step_ms) == {"as_it_comes", "channels_last", "contiguous"}
    assert "after a trial" in words[0]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, untouched[name]), name
        assert value.is_contiguous()
    assert all(parameter.grad is None for parameter in whole.parameters())
    assert whole.training
    again, silent, _ = decide(tmp_path, Training())
    assert again == found
    assert silent == []


def test_the_random_state_is_that_of_before_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network has a dropout, which draws."""
    quick(monkeypatch, {"as_it_comes": 10.0, "channels_last": 10.0, "contiguous": 10.0})
    network()
    before = torch.get_rng_state()
    decide(tmp_path, Training())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("channels_last", "contiguous", "wins"),
    [(9.5, 9.2, "as_it_comes"), (8.0, 9.0, "channels_last"), (12.0, 7.0, "contiguous")],
)
def test_a_clear_margin_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels_last: float, contiguous: float, wins: str
) -> None:
    quick(monkeypatch, {"as_it_comes": 10.0, "channels_last": channels_last, "contiguous": contiguous})
    assert decide(tmp_path, Training())[0].layout == wins


def test_a_choice_of_another_training_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, {"as_it_comes": 10.0, "channels_last": 5.0, "contiguous": 10.0})
    assert decide(tmp_path, Training())[0].layout == "channels_last"
    note = json.loads((tmp_path / "form.json").read_text())
    (tmp_path / "form.json").write_text(json.dumps({**note, "key": "another"}))
    quick(monkeypatch, {"as_it_comes": 5.0, "channels_last": 10.0, "contiguous": 10.0})
    assert decide(tmp_path, Training())[0].layout == "as_it_comes"


def test_compiling_must_pay_back_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, {"contiguous": 100.0})
    monkeypatch.setitem(form.COMPILING_SECONDS, "cpu", 0.0)
    steps = 2 * Training().epochs

    def compiled_in(seconds: float) -> Callable[..., tuple[Callable[[], None], float]]:
        def step() -> None:
            pass

        step.milliseconds = 50.0  # type: ignore[attr-defined]
        return lambda *_: (step, seconds)

    for cost, pays in ((0.05 * steps / 4, True), (0.05 * steps / 2, False)):
        monkeypatch.setattr(form._Trial, "compile", compiled_in(cost))
        found = decide(tmp_path / str(pays), Training(channels_last=False))[0]
        assert found.compiled is pays
        assert found.step_ms == {"contiguous": 100.0, "compiled": 50.0}


def test_a_machine_without_a_compiler_trains_without_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Uncompilable(nn.Sequential):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(form, "compiled", Uncompilable)
    found, words, _ = decide(tmp_path, Training(compile=True))
    assert found.compiled is False
    assert words == ["student: not compiled, torch.compile does not work here: no C++ compiler"]


def test_layers_that_are_listened_to_are_not_compiled(tmp_path: Path) -> None:
    found, words, _ = decide(tmp_path, Training(compile=True), taps=object())
    assert found.compiled is False
    assert "compares layers" in words[0]


def test_every_layout_trains_the_same_student(tmp_path: Path, tiny: Tiny) -> None:
    """Rounding apart; and the file's kernels lie as the user's own class has them."""
    weights = {}
    for said in ('"auto"', "true", "false"):
        directory = RunDirectory(tmp_path / said.strip('"'))
        distill(tiny(*STUDENT_ONLY, f"distill.channels_last={said}"), directory)
        weights[said] = load_file(directory.weights("student"))
    for said in ("true", "false"):
        for name, value in weights[said].items():
            torch.testing.assert_close(value, weights['"auto"'][name], rtol=0.02, atol=0.02, msg=f"{said}: {name}")


def test_a_killed_training_keeps_its_layout(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(*STUDENT_ONLY)
    quick(monkeypatch, {"as_it_comes": 10.0, "channels_last": 5.0, "contiguous": 10.0})
    whole = distill(recipe, RunDirectory(tmp_path / "whole"))
    assert whole.networks[1].form is not None
    assert whole.networks[1].form.layout == "channels_last"
    written = logging.MetricsLog.append

    def stop(self: logging.MetricsLog, entry: dict[str, object]) -> None:
        written(self, entry)
        if (entry["phase"], entry["epoch"]) == ("student", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(logging.MetricsLog, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, RunDirectory(tmp_path / "broken"))
    monkeypatch.setattr(logging.MetricsLog, "append", written)
    quick(monkeypatch, {"as_it_comes": 1.0, "channels_last": 5.0, "contiguous": 10.0})  # another wind today
    again = distill(recipe, RunDirectory(tmp_path / "broken"))
    assert again.networks[1].form == whole.networks[1].form
    student = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "broken")]
    assert student[0] == student[1]
