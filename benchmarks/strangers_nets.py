"""Networks after public architectures, as people keep them in one file, for ``strangers.py``."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """Ronneberger et al. 2015, two levels."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(3, width), self._block(width, 2 * width)
        self.middle = self._block(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join2, self.join1 = self._block(4 * width, 2 * width), self._block(2 * width, width)
        self.head = nn.Conv2d(width, 4, 1)

    @staticmethod
    def _block(inside: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        c = self.join2(torch.cat([self.up2(c), b], 1))
        return self.head(self.join1(torch.cat([self.up1(c), a], 1)))


class Tcn(nn.Module):
    """Bai et al. 2018: dilated causal convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(4 if k == 0 else 12, 12, 3, dilation=2**k) for k in range(3))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = F.relu(layer(F.pad(x, (2 * 2**k, 0))))
        return self.head(x[:, :, -1])


class Crnn(nn.Module):
    """Shi et al. 2015: convolutions, a bidirectional LSTM, a score per column."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.rnn, self.head = nn.LSTM(16 * 4, 12, bidirectional=True, batch_first=True), nn.Linear(24, 11)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.rnn(y)[0]).log_softmax(-1)


class PointNet(nn.Module):
    """Qi et al. 2017: a shared network per point, the largest over all."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1))
        self.head = nn.Linear(32, 6)

    def forward(self, cloud: Tensor) -> Tensor:
        return self.head(self.points(cloud.transpose(1, 2)).amax(2))


class Espcn(nn.Module):
    """Shi et al. 2016: super-resolution by pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(1, 16, 5, 1, 2),
            nn.Conv2d(16, 8, 3, 1, 1),
            nn.Conv2d(8, 9, 3, 1, 1),
        )
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv3(torch.tanh(self.conv2(torch.tanh(self.conv1(x))))))


class Mixer(nn.Module):
    """Tolstikhin et al. 2021, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm1, self.norm2 = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class Generator(nn.Module):
    """DCGAN's, Radford et al. 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ConvTranspose2d(12, 16, 4, 1, 0, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])


class Vae(nn.Module):
    """Kingma and Welling 2014; in eval it decodes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(20, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.decode = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 20), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x).relu()
        mean, spread = self.mean(h), self.spread(h)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp() if self.training else mean
        return self.decode(z), mean, spread


class SamplingVae(Vae):
    """The same with the noise left in: random in eval too, and to be refused."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x).relu()
        mean, spread = self.mean(h), self.spread(h)
        return self.decode(mean + torch.randn_like(mean) * (0.5 * spread).exp()), mean, spread


class YoloHead(nn.Module):
    """Boxes in pixels and class scores in one tensor, decoded with a grid made from the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.score = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.stem(x))
        rows, columns = torch.meshgrid(torch.arange(h.shape[2]), torch.arange(h.shape[3]), indexing="ij")
        grid = torch.stack([columns, rows], 0).to(x.dtype)
        box = self.box(h)
        centre, size = (box[:, :2].sigmoid() + grid) * 4, box[:, 2:].exp() * 4
        return torch.cat([centre.flatten(2), size.flatten(2), (self.score(h) - 4).sigmoid().flatten(2)], 1)


class Tagger(nn.Module):
    """A bidirectional GRU over words, a tag for each."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(60, 12), nn.GRU(12, 10, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(ids))[0])


class Streaming(nn.Module):
    """A voice activity detector that hands its state back, as Silero's does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv1d(1, 8, 16, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, audio: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv(audio[:, None]).abs().add(1e-9).log().transpose(1, 2)
        y, (h, c) = self.rnn(x, (h, c))
        return self.head(y[:, -1]).sigmoid(), h, c


class Wavenet(nn.Module):
    """Van den Oord et al. 2016: gated dilated convolutions with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 16, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**k) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), 0
        for k, gate in enumerate(self.gates):
            a, b = gate(F.pad(x, (2**k, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, skips = x + y, skips + y
        return self.last(F.relu(skips))


class Fcn(nn.Module):
    """Long et al. 2015: scores resized to the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.score = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.score(self.conv2(self.conv1(x).relu()).relu())
        return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


class Cosine(nn.Module):
    """An embedding over its norm plus 1e-8, against prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.prototypes = nn.Linear(20, 16), nn.Parameter(torch.randn(9, 16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return 10 * (h / (h.norm(dim=-1, keepdim=True) + 1e-8)) @ self.prototypes.t()


class BatchStandardized(nn.Module):
    """Standardized by the batch that it comes in: to be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x - x.mean(0)) / (x.std(0, correction=0) + 1e-5))
