"""Small segmentation networks of several designs, for export_segmentation.py: images to maps of 11 classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 11


def block(channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Bilinear decoding to the size of what the encoder saw, whatever it is."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = block(3, width)
        self.down = nn.ModuleList(block(width << k, width << k + 1, stride=2) for k in range(3))
        self.up = nn.ModuleList(block(3 * width << k, width << k) for k in (2, 1, 0))
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = [self.first(image)]
        for stage in self.down:
            maps.append(stage(maps[-1]))
        found = maps.pop()
        for stage in self.up:
            beside = maps.pop()
            larger = F.interpolate(found, beside.shape[2:], mode="bilinear", align_corners=False)
            found = stage(torch.cat([larger, beside], 1))
        return self.head(found)


class TransposedUNet(nn.Module):
    """Decoding by transposed convolutions (Ronneberger 2015)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.grow = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.up = nn.ModuleList([block(4 * width, 2 * width), block(2 * width, width)])
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        one = self.down[0](image)
        two = self.down[1](F.max_pool2d(one, 2))
        found = self.down[2](F.max_pool2d(two, 2))
        for grow, stage, beside in zip(self.grow, self.up, (two, one), strict=True):
            found = stage(torch.cat([grow(found), beside], 1))
        return {"out": self.head(found)}


class PSPNet(nn.Module):
    """Pyramid pooling (Zhao 2017), a quarter of the image's size, with an auxiliary head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, width, 2), block(width, width, 2), block(width, width, dilation=2))
        self.pyramid = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(k), nn.Conv2d(width, 4, 1)) for k in (1, 2, 3))
        self.head = nn.Conv2d(width + 12, CLASSES, 3, padding=1)
        self.aux = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.body(image)
        size = found.shape[2:]
        pooled = [F.interpolate(stage(found), size, mode="bilinear", align_corners=True) for stage in self.pyramid]
        return {"out": self.head(torch.cat([found, *pooled], 1)), "aux": self.aux(found)}


class FPN(nn.Module):
    """A feature pyramid (Lin 2017), summed top down with nearest resizing."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stages = nn.ModuleList([block(3, width, 2), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(width << k, 16, 1) for k in range(3))
        self.head = nn.Conv2d(16, CLASSES, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        found = self.lateral[2](maps[2])
        for lateral, beside in ((self.lateral[1], maps[1]), (self.lateral[0], maps[0])):
            found = lateral(beside) + F.interpolate(found, beside.shape[2:], mode="nearest")
        return self.head(found)


class PixelShuffleNet(nn.Module):
    """Depthwise convolutions, and pixel shuffle back to the image's size."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(3, width, 2),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.PReLU(width),
            block(width, width, 2),
            nn.Conv2d(width, 16 * CLASSES, 1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (F.pixel_shuffle(self.body(image), 4),)


class Dilated(nn.Module):
    """A context module of growing dilation (Yu 2016) with group normalization and Hardswish."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = block(3, width, 2)
        self.context = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(width, width, 3, padding=d, dilation=d), nn.GroupNorm(4, width), nn.Hardswish())
                for d in (1, 2, 4, 8)
            )
        )
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        found = self.stem(image)
        return F.interpolate(
            self.head(found + self.context(found)), scale_factor=2, mode="bicubic", align_corners=False
        )


class BiSeNet(nn.Module):
    """A spatial path and a context path whose global average weighs the channels (Yu 2018)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.spatial = nn.Sequential(block(3, width, 2), block(width, width, 2))
        self.context = nn.Sequential(
            block(3, width, 2), block(width, width, 2), block(width, width, 2), block(width, width, 2)
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())
        self.head = nn.Conv2d(2 * width, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        detail, context = self.spatial(image), self.context(image)
        context = F.interpolate(context * self.gate(context), detail.shape[2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat([detail, context], 1))


class SegFormer(nn.Module):
    """Attention over positions with a reduced sequence, and a decoder of one linear layer (Xie 2021)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 7, stride=4, padding=3)
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Conv2d(width, width, 4, stride=4)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.patch(image)
        height, width = found.shape[2:]
        tokens = self.norm(found.flatten(2).transpose(1, 2))
        keys = self.reduce(found).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, keys, keys, need_weights=False)[0]
        tokens = tokens + self.mix(tokens)
        return {"logits": self.head(tokens.transpose(1, 2).unflatten(2, (height, width)))}
