"""What would fail after hours is told before the first step, with the place in the user's code."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kdexport.artifacts import RunDirectory
from kdexport.data.samples import Dataset, Split
from kdexport.distill import layers, preflight
from kdexport.distill.batches import Batches, even_parts
from kdexport.distill.context import DistillContext
from kdexport.distill.logging import Trackers
from kdexport.distill.optimization import with_fitting_lr
from kdexport.distill.preflight import warn_of_doubt
from kdexport.distill.stage import distill
from kdexport.errors import KDExportError, SourceError
from kdexport.models.loading import Model, count_macs, evaluating, load_model
from kdexport.models.networks import load_network
from kdexport.models.predictors import load_predictor
from kdexport.models.weights import load_weights, save_weights
from kdexport.progress import Silent
from kdexport.recipe import Recipe, Student
from kdexport.tasks import TASKS

Tiny = Callable[..., Recipe]

NETS = """
import sys

import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, norm=nn.Identity):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x):
        return self.net(x)


class TwoHeads(Base):
    def forward(self, x):
        return (self.net(x), self.net(x)) if self.training else self.net(x)


class Asserts(Base):
    def forward(self, x):
        assert not self.training or len(x) % 2 == 1
        return self.net(x)


class Frozen(Base):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Detached(Base):
    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


class NotANumber(Base):
    def forward(self, x):
        return self.net(x) * float("nan")


class Exits(Base):
    def forward(self, x):
        if self.training:
            sys.exit(3)
        return self.net(x)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    def forward(self, x):
        return self.net(x)


class NormOfOne(Base):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


torch.manual_seed(0)
OBJECT = Base()


def cached():
    return OBJECT
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(NETS)
    return path


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("TwoHeads", r"in training mode the student gives a tuple of 2, and nothing says which"),
        ("Asserts", r"the student raises AssertionError in training mode, with a batch of 2 \(mine.py, line 24\)"),
        ("Exits", r"the student raises SystemExit: 3 in training mode, with a batch of 2 \(mine.py, line \d+\)"),
        ("Frozen", "the student has no parameter that can be trained"),
        ("Detached", "the student's output has no gradient"),
        ("NotANumber", "the student gives NaN or infinity"),
    ],
)
def test_a_student_that_cannot_be_trained_is_told_before_the_teacher_is(
    tmp_path: Path, tiny: Tiny, nets: Path, name: str, match: str
) -> None:
    recipe = tiny(f"student.model={nets}:{name}", "student.args={}")
    with pytest.raises(KDExportError, match=match) as caught:
        distill(recipe, RunDirectory(tmp_path / "run"))
    assert caught.value.hint
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_the_message_on_two_heads_says_to_set_works(tmp_path: Path, tiny: Tiny, nets: Path) -> None:
    recipe = tiny(f"student.model={nets}:TwoHeads", "student.args={}")
    with pytest.raises(KDExportError) as caught:
        distill(recipe, RunDirectory(tmp_path / "run"))
    assert 'student.output = "0"' in caught.value.hint
    recipe = tiny(f"student.model={nets}:TwoHeads", "student.args={}", "student.output='0'")
    made = distill(recipe, RunDirectory(tmp_path / "run"))
    assert {network.name for network in made.networks} >= {"teacher", "student"}


def test_a_teacher_that_gives_nan_is_told_before_any_training(tmp_path: Path, tiny: Tiny, nets: Path) -> None:
    progress = Recorder()
    recipe = tiny(f"teacher.model={nets}:NotANumber", "teacher.args={}", "distill.terms=[{method='dist', weight=0.0}]")
    with pytest.raises(KDExportError, match="the teacher gives NaN or infinity") as caught:
        distill(recipe, RunDirectory(tmp_path / "run"), progress)
    assert "weights" in caught.value.hint
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert any("the student learns from the labels alone" in text for text in progress.warned)


def test_batches_of_one_are_refused_by_a_network_that_normalizes_over_them(
    tmp_path: Path, tiny: Tiny, nets: Path
) -> None:
    single = ("distill.batch_size=1", "distill.terms=[{ method = 'soft_targets' }]")
    with pytest.raises(KDExportError, match="with a batch of 1") as caught:
        distill(tiny(f"student.model={nets}:NormOfOne", "student.args={}", *single), RunDirectory(tmp_path / "run"))
    assert "2 or more" in caught.value.hint


def test_a_layer_or_an_augmentation_that_is_not_there_shows_before_the_teacher_is_trained(
    tmp_path: Path, tiny: Tiny
) -> None:
    for fault in ("distill.terms=[{ method = 'hint', student_layer = 'blockz' }]", "distill.augment=['shiftt']"):
        with pytest.raises(KDExportError, match=r"blockz|shiftt"):
            distill(tiny(fault), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["OBJECT", "cached"])
def test_an_object_is_copied_for_each_role(nets: Path, name: str) -> None:
    """The plain student once began with the weights of the student that was taught."""
    first, second = (load_network(f"{nets}:{name}", {}) for _ in range(2))
    with torch.no_grad():
        first.net[1].weight.fill_(0.0)
    assert second.net[1].weight.abs().sum() > 0
    assert load_network(f"{nets}:{name}", {}).net[1].weight.abs().sum() > 0


def test_fp16_without_a_gpu_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    with pytest.raises(KDExportError, match="fp16") as caught:
        distill(tiny("distill.precision='fp16'"), RunDirectory(tmp_path))
    assert "bf16" in caught.value.hint


@pytest.mark.parametrize("count", [2, 3, 64, 65, 129, 193])
@pytest.mark.parametrize("size", [2, 64])
def test_no_part_and_no_batch_holds_one_sample(count: int, size: int) -> None:
    parts = even_parts(np.arange(count), size)
    assert np.array_equal(np.concatenate(parts), np.arange(count))
    assert {len(part) for part in parts} <= set(range(2, size + 2))
    split = Split((np.zeros((count, 1), dtype=np.float32),))
    batches = Batches(split, batch_size=size, seed=0, augmentation=None, views=1, device=torch.device("cpu"))
    assert min(len(batch.indices) for batch in batches.epoch(0)) >= 2


def test_modes_come_back_after_an_error_in_inference() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())
    network[1].eval()
    with pytest.raises(RuntimeError), evaluating(network):
        raise RuntimeError
    assert network.training
    assert not network[1].training


class Recorder(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def message(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)


class Given(NamedTuple):
    """A split with a teacher's logits."""

    name: str
    split: Split
    teacher_logits: np.ndarray

    def value(self, logits: np.ndarray) -> float | None:
        return self.split.task.score(logits, np.asarray(self.split.labels))

    def teacher_value(self) -> float | None:
        return self.value(self.teacher_logits)


@pytest.mark.parametrize(
    ("right", "shift", "warning"),
    [(0.9, 0, None), (0.3, 0, "does not classify these data: 30.0% of 300"), (0.9, 1, "in another order")],
)
def test_the_teachers_score_is_told_and_doubted(
    load: Callable[..., Dataset], right: float, shift: int, warning: str | None
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    wrong = rng.permutation(300) >= 300 * right
    predicted = (np.where(wrong, labels + rng.integers(1, 3, 300), labels) + shift) % 3
    split = Split((np.zeros((300, 1), dtype=np.float32),), labels)

    class Context:
        progress = Recorder()
        dataset = replace(load("digits"), train=split, class_names=("a", "b", "c"))

    logits = np.eye(3, dtype=np.float32)[predicted]
    preflight.tell(Context, "teacher", Given("val", split, logits))  # type: ignore[arg-type]
    expected = np.mean(predicted == labels)
    assert Context.progress.said == [f"teacher: accuracy {100 * expected:.1f} % on 300 val samples"]
    assert [warning is not None and warning in text for text in Context.progress.warned] == [True] * bool(warning)
    logits[7] = np.nan
    with pytest.raises(KDExportError, match="NaN or infinity for 1 of 300 val samples"):
        preflight.tell(Context, "teacher", Given("val", split, logits))  # type: ignore[arg-type]


def test_operations_are_counted_in_evaluation_mode(load: Callable[..., Dataset]) -> None:
    """A batch of one has no statistics: 1x1 maps, and rows of a multi-layer perceptron."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8))
    data = load("digits")
    assert count_macs(Model(network.train(), data.preprocessing), data) == 64 * 8
    assert network.training


def test_operations_that_cannot_be_counted_cost_no_training(load: Callable[..., Dataset]) -> None:
    """Statistics of its own batch, in evaluation too: there are none of one sample."""
    norm = torch.nn.BatchNorm1d(8, track_running_stats=False)
    data = load("digits")
    assert (
        count_macs(
            Model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), norm), data.preprocessing), data
        )
        is None
    )


def test_lazy_layers_get_their_shapes_before_weights_are_loaded(
    nets: Path, load: Callable[..., Dataset], tmp_path: Path
) -> None:
    """Its training was lost: the weights that it wrote could not be loaded into the next lazy network."""
    spec, data = Student(model=f"{nets}:Lazy"), load("digits")
    first = load_model("student", spec, data)
    save_weights(first.network, tmp_path / "lazy.safetensors")
    second = load_model("student", spec, data, tmp_path / "lazy.safetensors")
    inputs = first.preprocessing.apply(data.test.take(slice(0, 3)).inputs)
    assert torch.equal(first.network(*inputs), second.network(*inputs))
    with pytest.raises(SourceError, match=r"net\.1\.weight.*has no shape before its first call"):
        load_weights(load_network(f"{nets}:Lazy", {}), tmp_path / "lazy.safetensors")


def test_a_transformers_default_layer_is_its_last_tokens() -> None:
    class Patches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = torch.nn.Conv2d(1, 8, 2, 2)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
            self.head = torch.nn.Linear(8, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(image).flatten(2).transpose(1, 2)
            for block in self.blocks:
                tokens = block(tokens)
            return self.head(tokens.mean(dim=1))

    known = layers.trace(Patches(), (torch.zeros(2, 1, 8, 8),))
    assert layers.last_map(known, "teacher").path == "blocks.1"
    with pytest.raises(KDExportError, match="tokens after patches"):
        layers.fusible_stages(known, "teacher")


def test_gradients_are_clipped_with_what_is_learned_beside_the_network(tmp_path: Path, tiny: Tiny) -> None:
    """One plain step of size lr along a gradient whose norm, projections included, is clipped."""
    small = ("distill.baseline=false", "teacher.train.epochs=1", "distill.epochs=1", "distill.batch_size=1000")
    sgd = ("distill.optimizer='sgd'", "distill.momentum=0.0", "distill.weight_decay=0.0", "distill.warmup_epochs=0")
    hint = "distill.terms=[{ method = 'hint' }]"
    moved = {}

    def step(self: torch.optim.Optimizer, *args: object) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        moved[len(gradients)] = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        distill(tiny(*small, *sgd, hint, "distill.clip_grad_norm=0.001"), RunDirectory(tmp_path))
    assert list(moved.values()) == [pytest.approx(0.001, rel=1e-3)]


ATTENDS = """
from torch import nn
class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 10)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
    def forward(self, x):
        x = self.embed(x.flatten(1, 2))
        return self.head(self.attention(x, x, x)[0].mean(1))
"""


@pytest.mark.parametrize(
    ("weights", "keys", "lr"),
    [(True, {}, 5e-5), (False, {}, 0.002), (True, {"lr": 0.01}, 0.01), (True, {"optimizer": "sgd"}, 0.002)],
)
def test_a_pretrained_transformer_is_trained_at_a_rate_that_does_not_ruin_it(
    tmp_path: Path, load: Callable[..., Dataset], weights: bool, keys: dict[str, object], lr: float
) -> None:
    (tmp_path / "nets.py").write_text(ATTENDS)
    reference = f"{tmp_path / 'nets.py'}:Attends"
    torch.save(load_network(reference, {}).state_dict(), tmp_path / "net.pt")
    network = {"model": reference, **({"weights": str(tmp_path / "net.pt")} if weights else {})}
    recipe = Recipe.parse(
        {
            "name": "x",
            "data": {"source": "digits"},
            "teacher": {**network, "train": keys},
            "student": network,
            "distill": keys,
        }
    )
    recorder = Recorder()
    directory = RunDirectory(tmp_path / "run")
    context = DistillContext(recipe, directory, load("digits"), recorder, Trackers((), tmp_path, "x"))
    fitting = with_fitting_lr(context).recipe
    assert fitting.teacher.train is not None
    assert fitting.distill.lr == fitting.teacher.train.lr == lr
    assert len(recorder.said) == (2 if lr == 5e-5 else 0)


def test_a_configuration_without_weights_is_no_pretrained_transformer(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=10)
    config.architectures = ["ViTForImageClassification"]
    config.save_pretrained(tmp_path / "vit")
    network = {"model": f"hf:{tmp_path / 'vit'}"}
    document = {"name": "x", "data": {"source": "digits"}, "teacher": {**network, "train": {}}, "student": network}
    recipe, recorder = Recipe.parse(document), Recorder()
    data = load("digits")
    context = DistillContext(recipe, RunDirectory(tmp_path / "run"), data, recorder, Trackers((), tmp_path, "x"))
    assert with_fitting_lr(context).recipe.distill.lr == 0.002
    assert recorder.said == []
    load_model("teacher", recipe.teacher, data)  # it is to be fitted on the labels
    with pytest.raises(SourceError, match="has no weights: it would teach noise"):
        load_model("teacher", recipe.teacher.model_copy(update={"train": None}), data)
    assert "no weights are given" in load_predictor(recipe.student, data).warnings[0]


class Warnings(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def warn(self, message: str) -> None:
        self.told.append(message)


@pytest.mark.parametrize(("right", "guesses"), [(0.9, False), (0.52, True), (0.1, True)])
def test_a_teacher_that_guesses_is_a_warning(right: float, guesses: bool) -> None:
    labels = np.arange(200) % 2
    predicted = np.where(np.random.default_rng(0).permutation(200) < 200 * right, labels, 1 - labels)

    class Data:
        task, class_names = TASKS["classification"], ("even", "odd")

    class Context:
        progress, dataset = Warnings(), Data

    warn_of_doubt(Context, "teacher", np.eye(2, dtype=np.float32)[predicted], labels)  # type: ignore[arg-type]
    assert bool(Context.progress.told) is guesses
    if guesses:
        assert f"{right:.1%} of 200 samples" in Context.progress.told[0]


IDS = """
import numpy as np
import torch
from torch import nn


def data():
    ids = np.arange(240).reshape(60, 4) % 9
    ids[57, 2] = 9  # one of the test split, one more than the embedding holds
    labels = np.arange(60) % 2
    return {name: (ids[rows], labels[rows]) for name, rows in (
        ("train", slice(0, 40)), ("val", slice(40, 50)), ("test", slice(50, 60)))}


class Bag(nn.Module):
    def __init__(self, words=9):
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.embed(ids).mean(dim=1))
"""


def test_the_largest_id_of_any_split_is_tried_first(tmp_path: Path) -> None:
    mine = tmp_path / "bag.py"
    mine.write_text(IDS)
    document = {
        "name": "x",
        "data": {"source": f"{mine}:data"},
        "teacher": {"model": f"{mine}:Bag", "args": {"words": 10}, "train": {"epochs": 1}},
        "student": {"model": f"{mine}:Bag"},
        "distill": {"epochs": 1},
    }
    with pytest.raises(KDExportError, match=r"the student raises IndexError: .* of the test split, .*bag.py, line 21"):
        distill(Recipe.parse(document), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
