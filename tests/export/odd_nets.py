"""Networks as people bring them: guards of 1e-8, states, scalars, anchors, names, sizes taken for constants."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Guarded(nn.Module):
    """Divisions, a logarithm, a factor and a difference whose constants are nearly nothing, an output each."""

    def __init__(self, exact: bool = False) -> None:
        super().__init__()
        self.exact, self.head = exact, nn.Linear(8, 5)

    def forward(self, x: Tensor):
        if self.exact:
            return self.head((x + 0) * 1)
        norm = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        log = torch.log(x * x + 1e-9)
        minus = torch.rsqrt(x * x - -1e-9)
        return tuple(self.head(y) for y in (norm, log, x * 1.000001, x / 0.999999, minus))


class Lstm(nn.Module):
    """Scores and the state to go on with; with a state it goes on from there."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None):
        y, state = self.rnn(x, None if h is None or c is None else (h, c))
        return self.head(y[:, -1]), state


class Words(nn.Module):
    """28 symbols, two segments, a mask; the mask is the third parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.segments, self.head = nn.Embedding(28, 16), nn.Embedding(2, 16), nn.Linear(16, 5)

    def forward(self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(ids) if segments is None else self.embedding(ids) + self.segments(segments)
        if mask is None:
            return self.head(x.mean(1))
        m = mask.to(x.dtype).unsqueeze(-1)
        return self.head((x * m).sum(1) / m.sum(1).clamp(min=1))


class Denoiser(nn.Module):
    """An image and one timestep a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(2, 3)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        angle = timestep[:, None].float()
        return self.conv(sample) + self.time(torch.cat([angle.sin(), angle.cos()], 1))[:, :, None, None]


class Clip(nn.Module):
    """Two towers; what else it gives is no sample's."""

    def __init__(self, gives: str) -> None:
        super().__init__()
        self.gives, self.image, self.text = gives, nn.Linear(12, 8), nn.Linear(10, 8)
        self.scale = nn.Parameter(torch.tensor(2.6))
        self.register_buffer("anchors", torch.rand(16, 4))

    def forward(self, image: Tensor, text: Tensor):
        a, b = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        if self.gives == "matrix":
            logits = self.scale * a @ b.t()
            return logits, logits.t()
        return a, b, self.scale, self.scale.exp(), self.anchors


class Named(nn.Module):
    """Its layers are called as kdexport calls what is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocessing, self.output = nn.Linear(6, 8), nn.Linear(8, 5)
        self.logits = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.preprocessing(x).relu()).softmax(-1) + self.logits


class Sized(nn.Module):
    """Takes images of other sizes, or only seems to."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        if self.kind == "up":
            return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        if self.kind == "pool":
            return F.adaptive_avg_pool2d(y, 3)
        if self.kind == "number":
            return y + torch.linspace(0, 1, int(y.shape[3])).view(1, 1, 1, -1)
        return y.flatten(1)[:, : 4 * 8 * 8].reshape(-1, 4, 8, 8)


class Fickle(nn.Module):
    """Gives a sample one output now and another then."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(6, 3)
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "random":
            return self.head(F.dropout(x, 0.5))
        if self.kind == "batch":
            return self.head((x - x.mean(0)) / (x.std(0, correction=0) + 1e-5))
        if self.kind == "state":
            y = self.head(x) + 0.5 * self.last
            self.last.copy_(y.mean(0))
            return y
        if self.kind == "assertion":
            assert x.shape[1] == 5
        self.calls += 1
        return self.head(x)


@dataclass
class Found:
    """What Answers gives."""

    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


class Answers(nn.Module):
    """A dataclass comes out, as of Hugging Face's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, *, x: Tensor) -> Found:
        hidden = self.body(x).relu()
        return Found(self.head(hidden), hidden)


def half() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).half()


def bfloat16() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).bfloat16()


def double() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class Mean(nn.Module):
    """A mean over axes: its operator has no conversion below opset 18."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def parallel() -> nn.Module:
    return nn.DataParallel(torch.compile(mlp()))


def scripted() -> nn.Module:
    return torch.jit.script(mlp())


class ScriptedPart(nn.Module):
    """One of its layers is TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = torch.jit.script(nn.Linear(8, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


class Batched(nn.Module):
    """Takes one dict of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.left(batch["x"]) + self.right(batch["y"])


class Normed(nn.Module):
    """Its layer norm has no conversion to opset 26."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.gelu(self.norm(x)))


class Encoder(nn.Module):
    """PyTorch's own encoder, with padding."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed, self.nested = nn.Embedding(15, 8), nested
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(self.embed(ids), src_key_padding_mask=mask == 0)


class Packed(nn.Module):
    """Packs sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        padded, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return padded


class OfAList(nn.Module):
    """Takes one list of tensors."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(8, 3)

    def forward(self, xs: list[Tensor]) -> Tensor:
        if self.kind == "index":
            return self.head(xs[0] + xs[1])
        if self.kind == "key":
            return self.head(xs["pixels"])
        return self.head(torch.cat(xs, 1)[:, :8] if self.kind == "cat" else sum(xs))


class Bf16Inside(nn.Module):
    """bfloat16 inside, float32 in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.bfloat16()).float()


class Enlarged(nn.Module):
    """A map that is enlarged, to a size that is no multiple of its own or is one pixel."""

    def __init__(self, mode: str = "nearest", size: int = 64) -> None:
        super().__init__()
        self.conv, self.mode, self.size = nn.Conv2d(1, 2, 3, padding=1), mode, size

    def forward(self, image):
        return nn.functional.interpolate(self.conv(image), size=(self.size, self.size), mode=self.mode)
