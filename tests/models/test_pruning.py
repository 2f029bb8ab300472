"""A pruned teacher: what is cut, against torch-pruning used by hand and against zeroed channels; and what cannot be."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import MobileNetV2, VisionTransformer
from torchvision.ops import FrozenBatchNorm2d

from kdexport.errors import SourceError
from kdexport.models.pruned import plan_in, plan_of
from kdexport.models.pruning import prune
from kdexport.models.weights import load_weights, save_weights
from kdexport.recipe import Prune

tp = pytest.importorskip("torch_pruning")
IMAGES = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Residual(nn.Module):
    """A block as ResNet has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """A stem, blocks and a head."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """As people write it: one projection, heads by a number that the module keeps."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Texts(nn.Module):
    """Tokens, attention, a head whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        self.layers = nn.ModuleList(Attention(32, 2) for _ in range(2))
        self.norm = nn.LayerNorm(32)
        self.decoder = nn.Linear(32, 20, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.decoder(self.norm(x).mean(1))


def seeded(factory: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = factory().eval()
    for module in network.modules():  # statistics as a training leaves them: else pruned channels would look alike
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


def mobile() -> nn.Module:
    return MobileNetV2(num_classes=5, inverted_residual_setting=[[1, 16, 1, 1], [2, 24, 2, 1]])


def vit() -> nn.Module:
    return VisionTransformer(16, 8, 2, 2, 32, 64, num_classes=5)


IDS = (torch.tensor([[1, 2, 3], [4, 5, 6]]),)
FAMILIES = [(Net, IMAGES), (mobile, IMAGES), (vit, IMAGES), (Texts, IDS)]


@pytest.mark.parametrize(("factory", "inputs"), FAMILIES, ids=["residual", "mobilenet", "vit", "tied"])
def test_a_pruned_network_comes_back_from_its_class_and_its_weights(
    factory: Callable[[], nn.Module], inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    whole = seeded(factory)
    before = copy.deepcopy(whole.state_dict())
    cut, _ = prune(whole, Prune(keep=0.5, round_to=2), inputs, "the student")
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    parameters = [sum(item.numel() for item in network.parameters()) for network in (whole, cut)]
    plan = plan_of(cut)
    assert plan is not None
    assert [plan.summary.parameters_before, plan.summary.parameters] == parameters
    assert plan.summary.kept == parameters[1] / parameters[0]
    assert abs(plan.summary.kept - 0.5) < 0.1
    save_weights(cut, tmp_path / "cut.safetensors")
    torch.manual_seed(7)
    again = factory().eval()
    load_weights(again, tmp_path / "cut.safetensors")
    assert plan_in(tmp_path / "cut.safetensors") == plan_of(again) == plan
    with torch.no_grad():
        assert torch.equal(again(*inputs), cut(*inputs))
    if isinstance(again, Texts):
        assert again.decoder.weight is again.embedding.weight


def test_torch_pruning_by_hand_gives_the_same_network() -> None:
    whole = seeded(Net)
    cut, _ = prune(whole, Prune(keep=0.4, round_to=4), IMAGES, "the student")
    plan = plan_of(cut)
    assert plan is not None
    by_hand = copy.deepcopy(whole)
    pruner = tp.pruner.BasePruner(
        by_hand,
        IMAGES[0],
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=plan.summary.channels_out,
        round_to=4,
        ignored_layers=[by_hand.head],
    )
    pruner.step()
    theirs, ours = by_hand.state_dict(), cut.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert ours["stem.0.weight"].shape == (8, 3, 3, 3)  # of 16 at 0.4, whose root is 0.63, down to a multiple of 4


def test_what_is_left_computes_what_the_whole_network_does_without_the_channels() -> None:
    """Channels that are taken out are zeroed in the whole network: what both give is the same."""
    whole = seeded(Net)
    cut, _ = prune(whole, Prune(keep=0.6, round_to=1, ignore=("stem",)), IMAGES, "the student")
    masked = copy.deepcopy(whole)
    for index in range(3):
        block, small = masked.blocks[index], cut.blocks[index]
        kept = [
            channel
            for channel in range(16)
            if any(torch.equal(block.bn1.running_mean[channel], mean) for mean in small.bn1.running_mean)
        ]
        assert len(kept) == small.conv1.out_channels < 16
        gone = [channel for channel in range(16) if channel not in kept]
        for tensor in (block.bn1.weight, block.bn1.bias):
            tensor.data[gone] = 0.0
    with torch.no_grad():
        torch.testing.assert_close(masked(*IMAGES), cut(*IMAGES), rtol=1e-5, atol=1e-5)


def test_taylor_takes_the_channels_that_the_loss_does_not_feel() -> None:
    whole = seeded(lambda: Net(blocks=1))
    gradients = {name: torch.zeros_like(item) for name, item in whole.named_parameters()}
    felt = [1, 2, 3, 5, 8, 13]
    gradients["blocks.0.conv1.weight"][felt] = 1.0
    settings = Prune(keep=0.6, importance="taylor", round_to=1, ignore=("stem", "blocks.0.conv2"))
    cut, _ = prune(whole, settings, IMAGES, "the student", gradients=lambda _: gradients)
    left = cut.blocks[0].bn1.running_mean
    assert all(whole.blocks[0].bn1.running_mean[channel] in left for channel in felt)


def test_every_other_block_and_named_blocks_are_taken_out() -> None:
    whole = seeded(Net)
    cut, _ = prune(whole, Prune(layers="every-other"), IMAGES, "the student")
    with torch.no_grad():
        expected = whole.head(whole.blocks[2](whole.blocks[0](whole.stem(*IMAGES))).mean((2, 3)))
        assert torch.equal(cut(*IMAGES), expected)
        for wanted in (1, "blocks.1"):
            assert torch.equal(prune(whole, Prune(layers=(wanted,)), IMAGES, "it")[0](*IMAGES), expected)
    plan = plan_of(cut)
    assert plan is not None
    assert [(row.layer, row.before, row.after) for row in plan.summary.layers] == [("blocks.1", (4704,), None)]


def test_a_pruned_network_is_pruned_again(tmp_path: Path) -> None:
    once, _ = prune(seeded(Net), Prune(keep=0.6, round_to=2, layers=(1,)), IMAGES, "the student")
    twice, _ = prune(once, Prune(keep=0.5, round_to=2, layers=(1,)), IMAGES, "the student")
    save_weights(twice, tmp_path / "twice.safetensors")
    again = Net().eval()
    load_weights(again, tmp_path / "twice.safetensors")
    with torch.no_grad():
        assert torch.equal(again(*IMAGES), twice(*IMAGES))
    with pytest.raises(SourceError, match="of another one than this"):
        load_weights(nn.Linear(2, 2), tmp_path / "twice.safetensors")


class FixedView(nn.Module):
    """The number of channels stands in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 16)
        self.third, self.head = nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x))).view(-1, 32)
        return self.head(F.relu(self.third(x)))


class Frozen(nn.Module):
    """Normalization by buffers, which torch-pruning does not see (Torch-Pruning #211)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), FrozenBatchNorm2d(16)
        self.second, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3)))


class Shuffle(nn.Module):
    """Channels become pixels (Torch-Pruning #98, #420)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(2)
        self.second, self.head = nn.Conv2d(4, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.up(self.first(x)))).mean((2, 3)))


class Detached(nn.Module):
    """No gradient leads to the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)).detach())).mean((2, 3)))


class C2f(nn.Module):
    """Half of what a layer gives goes on, beside the whole (Torch-Pruning #147)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.last, self.head = nn.Conv2d(48, 32, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        parts.append(self.middle(parts[-1]))
        return self.head(F.relu(self.last(torch.cat(parts, 1))).mean((2, 3)))


class Chain(nn.Module):
    """Two convolutions, with something between."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or nn.Conv2d(3, 16, 3, padding=1)
        self.between = between
        self.second, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.between(self.first(x)))).mean((2, 3)))


class Swish(torch.autograd.Function):
    """An activation of one's own, as efficientnet_pytorch has it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:  # noqa: ARG004
        return slope


class Mixed(torch.autograd.Function):
    """An operator of one's own that counts on 16 channels."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.reshape(x.shape[0], 4, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:  # noqa: ARG004
        return slope


def normed() -> nn.Module:
    return Chain(first=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1)))


def grouped() -> nn.Module:
    return Chain(first=nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4)))


class Twice(Chain):
    """One layer, two places."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.head(self.second(self.second(self.first(x))).mean((2, 3)))


class OneChannel(Chain):
    """A convolution with one output (Torch-Pruning #179)."""

    def __init__(self) -> None:
        super().__init__(between=nn.Sequential(nn.Conv2d(16, 1, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)))


def test_layers_that_others_had_trouble_with_are_pruned() -> None:
    for factory in (OneChannel, grouped, Twice, lambda: Chain(between=Swish.apply)):
        cut, notes = prune(seeded(factory), Prune(keep=0.5, round_to=4), IMAGES, "the student")
        assert cut.second.out_channels < 16
        assert cut(*IMAGES).shape == (2, 5)
        told = ["the operators Swish are taken to work on each channel alone"] if cut.between == Swish.apply else []
        assert [note for note in notes if "operators" in note] == told


BLOCKING = [
    *((FixedView, ["second"]), (Frozen, ["first"]), (Shuffle, ["first"]), (C2f, ["middle", "first"])),
    *((normed, ["first"]), (lambda: Chain(between=Mixed.apply), ["first"])),
]


@pytest.mark.parametrize(
    ("factory", "ignore"), BLOCKING, ids=["view", "buffers", "shuffle", "chunk", "weight-norm", "operator"]
)
def test_layers_that_stand_in_the_way_are_named_and_the_hint_works(
    factory: Callable[[], nn.Module], ignore: list[str]
) -> None:
    whole = seeded(factory)
    with pytest.raises(SourceError, match="does not run once the channels of these layers are fewer") as caught:
        prune(whole, Prune(keep=0.5, round_to=1), IMAGES, "the student")
    quoted = ", ".join(f'"{name}"' for name in ignore)
    assert f"ignore = [{quoted}]" in caught.value.hint
    cut, _ = prune(whole, Prune(keep=0.7, round_to=1, ignore=tuple(ignore)), IMAGES, "the student")
    assert cut.get_submodule(ignore[0]).out_channels == whole.get_submodule(ignore[0]).out_channels


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    """torch-pruning alone would find no dependency and prune nothing (fasterai #63)."""
    whole = seeded(Net).requires_grad_(False)
    cut, _ = prune(whole, Prune(keep=0.5, round_to=1), IMAGES, "the student")
    assert cut.stem[0].out_channels < 16
    assert not any(parameter.requires_grad for parameter in cut.parameters())


def test_a_layer_that_no_gradient_reaches_is_told() -> None:
    cut, notes = prune(seeded(Detached), Prune(keep=0.7, round_to=1), IMAGES, "the student")
    assert cut.first.out_channels == 16
    assert cut.second.out_channels < 16
    assert notes[-1] == "no gradient reaches first: left whole"


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (Prune(keep=0.5, ignore=("blocks.0.conv3",)), "ignore names 'blocks.0.conv3'", "did you mean 'blocks.0.conv"),
        (Prune(layers=("block.1",)), "layers names 'block.1'", "did you mean 'blocks.1'"),
        (Prune(layers=(3,)), "names the block 3", "0 blocks.0, 1 blocks.1, 2 blocks.2"),
        (Prune(layers=("stem",)), "stem of the student cannot be taken out", "0 blocks.0"),
        (Prune(keep=0.2, round_to=1, ignore=("blocks.0", "blocks.1")), "cannot be reached", "fewer layers"),
        (Prune(keep=0.5, round_to=64), "takes nothing out", "round_to = 1"),
    ],
)
def test_what_cannot_be_is_told(settings: Prune, message: str, hint: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        prune(seeded(Net), settings, IMAGES, "the student")
    assert hint in caught.value.hint
