import copy

import pydantic
import pytest
import torch
from torch import nn

from kdexport import terms
from kdexport.distill import layers
from kdexport.distill.features import FeatureHooks
from kdexport.distill.objective import Objective
from kdexport.errors import KDExportError
from kdexport.terms import METHODS

TERM = pydantic.TypeAdapter(terms.Term)
SAMPLES, BATCH, CLASSES = 40, 6, 10


class Conv(nn.Module):
    """Three stages of maps at three resolutions, a pooling without a module, and a head."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width << i, width << (i + 1), 3, 2, 1), nn.BatchNorm2d(width << (i + 1)), nn.ReLU())
            for i in range(2)
        )
        self.relu = nn.ReLU()
        self.head = nn.Linear(width << 2, CLASSES)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for stage in self.stages:
            x = self.relu(stage(x))
        return self.head(x.mean(dim=(2, 3)))


class Tokens(nn.Module):
    """A small transformer on 4x4 patches, wrapped once as Hugging Face's are."""

    def __init__(self, width=12):
        super().__init__()
        self.model = nn.Sequential(
            Patches(width), nn.TransformerEncoderLayer(width, 2, 16, batch_first=True), Head(width)
        )

    def forward(self, x):
        return self.model(x)


class Patches(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, 4)

    def forward(self, x):
        return self.conv(x).flatten(2).transpose(1, 2)


class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.linear(x.mean(dim=1))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(BATCH, 3, 16, 16), torch.arange(BATCH) * 3


def term(method, **options):
    return TERM.validate_python({"method": method, **options})


def hooked(objective, student, teacher, batch, **options):
    images, indices = batch
    hooks = FeatureHooks(objective.feature_terms, student, teacher, (images,), (images,), samples=SAMPLES, **options)
    with hooks.student():
        student_logits = student(images)
    with torch.no_grad(), hooks.teacher():
        teacher_logits = teacher(images)
    total, parts = objective(
        student_logits, None, teacher_logits, progress_of_training=0.5, features=hooks.features(indices)
    )
    return hooks, total, parts


FEATURE_METHODS = [name for name, method in METHODS.items() if "features" in method.needs]


@pytest.mark.parametrize(
    ("name", "make_teacher"),
    [
        *((name, lambda: Conv(6)) for name in FEATURE_METHODS),
        *((name, Tokens) for name in FEATURE_METHODS if name not in ("attention", "review")),  # they compare positions
    ],
)
def test_every_feature_method_teaches_an_unlike_student(name, make_teacher, batch):
    student, teacher = Conv(3), make_teacher()
    hooks, total, parts = hooked(Objective(0.0, [term(name)]), student, teacher, batch)
    total.backward()
    assert torch.isfinite(total)
    assert total > 0
    assert tuple(parts) == (name,)
    assert max(p.grad.abs().max() for p in student.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in hooks.parameters())


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_the_student_and_the_random_state_are_left_as_they_were(name, batch):
    student, teacher = Conv(3), Conv(6)
    before, random = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    hooks = FeatureHooks({name: term(name)}, student, teacher, (batch[0],), (batch[0],), samples=SAMPLES)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())
    assert student.state_dict().keys() == before.keys()
    assert student.training
    with hooks.student():
        student(batch[0])
    left = [module._forward_hooks for network in (student, teacher) for module in network.modules()]
    assert not any(left)
    ours = {id(p) for p in student.parameters()}
    assert not ours & {id(p) for p in hooks.parameters()}


def test_the_gradient_is_that_of_the_loss_by_hand(batch):
    student, teacher = Conv(3), Conv(3)
    _, total, _ = hooked(
        Objective(0.0, [term("hint", student_layer="stages.0", teacher_layer=2)]), student, teacher, batch
    )
    total.backward()
    got = student.stem.weight.grad.clone()
    student.zero_grad()
    f = student.stages[0](torch.relu(student.stem(batch[0])))
    with torch.no_grad():
        g = torch.relu(teacher.stem(batch[0]))
        g = teacher.stages[0](g)
    ((f - g) ** 2).mean().backward()
    assert torch.allclose(got, student.stem.weight.grad)


@pytest.mark.parametrize(
    ("student", "teacher", "method", "parameters"),
    [
        ("stages.1", "stages.1", "hint", 12 * 24 + 24),  # 1x1 convolution
        ("stages.0", "stages.1", "hint", 6 * 24 + 24),  # and pooling
        ("stages.1", "stages.0", "hint", 0),  # equal channels: interpolation alone
        ("head", "head", "hint", 0),
        ("stages.1", "head", "hint", 12 * 10 + 10),  # pooled to a vector, linear
        ("stages.1", "stages.1", "cosine", 12 * 24 + 24),
        ("stages.1", "stages.1", "similarity", 0),
    ],
)
def test_projections_have_what_the_shapes_ask_for(student, teacher, method, parameters, batch):
    objective = Objective(0.0, [term(method, student_layer=student, teacher_layer=teacher)])
    hooks, total, _ = hooked(objective, Conv(3), Conv(6), batch)
    assert sum(p.numel() for p in hooks.parameters()) == parameters
    assert torch.isfinite(total)


def test_a_projection_learns_its_way_to_the_teacher(batch):
    torch.manual_seed(0)
    student, teacher = Conv(3).eval(), Conv(6).eval()
    objective = Objective(0.0, [term("hint")])
    hooks, first, _ = hooked(objective, student, teacher, batch)
    optimizer = torch.optim.Adam(hooks.parameters(), lr=0.05)
    for _ in range(60):
        with hooks.student(), torch.no_grad():
            logits = student(batch[0])
        with hooks.teacher(), torch.no_grad():
            teacher(batch[0])
        total, _ = objective(logits, None, None, progress_of_training=0.0, features=hooks.features(batch[1]))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total < 0.5 * first


def test_equal_seeds_give_equal_projections_and_a_state_comes_back(batch):
    objective = Objective(0.0, [term("crd", negatives=8), term("hint"), term("hint", student_layer=0, teacher_layer=0)])
    one, _, parts = hooked(objective, Conv(3), Conv(6), batch, seed=1)
    assert tuple(parts) == ("crd", "hint", "hint.2")
    fresh = FeatureHooks(objective.feature_terms, Conv(3), Conv(6), (batch[0],), (batch[0],), samples=SAMPLES, seed=1)
    state = one.state_dict()
    same = {key for key, value in fresh.state_dict().items() if torch.equal(value, state[key])}
    assert set(state) - same == {"crd.student_bank", "crd.teacher_bank", "crd.log_normalizers"}
    fresh.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


def test_crd_remembers_the_samples_it_saw_and_no_others(batch):
    objective = Objective(0.0, [term("crd", negatives=8)])
    fresh = FeatureHooks(
        objective.feature_terms, Conv(3), Conv(6), (batch[0],), (batch[0],), samples=SAMPLES
    ).state_dict()
    fresh = {key: value.clone() for key, value in fresh.items()}
    used, _, _ = hooked(objective, Conv(3), Conv(6), batch)
    moved = (used.state_dict()["crd.student_bank"] != fresh["crd.student_bank"]).any(dim=1).nonzero().flatten()
    assert moved.tolist() == batch[1].tolist()
    assert torch.allclose(used.state_dict()["crd.student_bank"].norm(dim=1), torch.ones(SAMPLES))


def test_crd_brings_matching_samples_together(batch):
    torch.manual_seed(0)
    student, teacher = Conv(3), Conv(6).eval()
    objective = Objective(0.0, [term("crd", negatives=30)])
    hooks, first, _ = hooked(objective, student, teacher, batch)
    optimizer = torch.optim.Adam([*student.parameters(), *hooks.parameters()], lr=0.01)
    for _ in range(40):
        with hooks.student():
            logits = student(batch[0])
        with hooks.teacher(), torch.no_grad():
            teacher(batch[0])
        total, _ = objective(logits, None, None, progress_of_training=0.0, features=hooks.features(batch[1]))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total < 0.75 * first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_features_of_half_precision_passes_are_compared_in_fp32(name, dtype, batch):
    student, teacher = Conv(3), Conv(6)
    objective = Objective(0.0, [term(name)])
    hooks = FeatureHooks(objective.feature_terms, student, teacher, (batch[0],), (batch[0],), samples=SAMPLES)
    with torch.autocast("cpu", dtype=dtype):
        with hooks.student():
            logits = student(batch[0])
        with torch.no_grad(), hooks.teacher():
            teacher(batch[0])
        total, _ = objective(logits, None, None, progress_of_training=0.0, features=hooks.features(batch[1]))
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)


def paths(found):
    return [layer.path for layer in found]


def test_finds_layers_by_path_glob_and_number(batch):
    found = layers.trace(Conv(3), (batch[0],))
    assert [layer.path for layer in found if layer.stage is not None] == [
        "stem",
        "relu",
        "stages.0",
        "stages.1",
        "head",
    ]
    assert paths(layers.find(found, "stages.0.1", "student")) == ["stages.0.1"]
    assert paths(layers.find(found, "stages.*", "student")) == ["stages.0", "stages.1"]
    assert paths(layers.find(found, "stages.*.0", "student")) == ["stages.0.0", "stages.1.0"]
    assert paths(layers.find(found, -2, "student")) == paths(layers.find(found, "-2", "student")) == ["stages.1"]
    assert paths(layers.find(found, 0, "student")) == ["stem"]


def test_stages_are_found_in_wrappers_lists_and_long_sequences(batch):
    found = layers.trace(Tokens(), (batch[0],))
    assert [layer.path for layer in found if layer.stage is not None] == ["model.0", "model.1", "model.2"]
    long = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)), nn.Flatten(), nn.Linear(80, 2)
    )
    found = layers.trace(long, (batch[0],))
    assert [layer.path for layer in found if layer.stage is not None] == ["0.0", "0.1", "1", "2"]


def test_suggests_pairs_of_equal_meaning(batch):
    student, teacher = layers.trace(Conv(3), (batch[0],)), layers.trace(Conv(6), (batch[0],))
    assert [(a.path, b.path) for a, b in layers.suggested_pairs(student, teacher)] == [
        ("stem", "stem"),
        ("stages.0", "stages.0"),
        ("stages.1", "stages.1"),
    ]


@pytest.mark.parametrize(
    ("name", "match", "hint"),
    [
        ("stages.3", r"no layer 'stages.3'", "did you mean 'stages"),
        ("stage.0", r"no layer 'stage.0'", "stages.1 [12, 4, 4]"),
        ("*.*.9", "no layer", "it has"),
        ("-9", "has 5 stages", "0 to 4"),
        ("relu", "runs 3 times", "--show-layers"),
    ],
)
def test_says_which_layers_there_are(name, match, hint, batch):
    with pytest.raises(KDExportError, match=match) as caught:
        FeatureHooks(
            {"hint": term("hint", student_layer=name)}, Conv(3), Conv(6), (batch[0],), (batch[0],), samples=SAMPLES
        )
    assert hint in caught.value.hint


def test_says_when_a_network_shows_no_layers():
    with pytest.raises(KDExportError, match="a Linear shows no layers") as caught:
        layers.trace(nn.Linear(3, 2), (torch.zeros(2, 3),))
    assert "logits" in caught.value.hint


def test_review_wants_as_many_layers_of_both(batch):
    wanted = term("review", student_layers=("stages.*",), teacher_layers=("stages.1",))
    with pytest.raises(KDExportError, match="2 of the student, 1 of the teacher") as caught:
        FeatureHooks({"review": wanted}, Conv(3), Conv(6), (batch[0],), (batch[0],), samples=SAMPLES)
    assert "student_layers" in caught.value.hint


def test_a_tap_is_closed_after_an_error(batch):
    student = Conv(3)
    hooks = FeatureHooks({"hint": term("hint")}, student, Conv(6), (batch[0],), (batch[0],), samples=SAMPLES)
    with pytest.raises(RuntimeError), hooks.student():
        student(torch.zeros(2, 5, 16, 16))
    assert not any(module._forward_hooks for module in student.modules())


def test_a_teacher_in_inference_mode_is_named_as_the_cause(batch):
    student, teacher = Conv(3), Conv(6)
    hooks = FeatureHooks(
        {"similarity": term("similarity")}, student, teacher, (batch[0],), (batch[0],), samples=SAMPLES
    )
    with hooks.student():
        logits = student(batch[0])
    with torch.inference_mode(), hooks.teacher():
        teacher(batch[0])
    with pytest.raises(KDExportError, match="inference_mode"):
        Objective(0.0, [term("similarity")])(
            logits, None, None, progress_of_training=0.0, features=hooks.features(batch[1])
        )
