"""Networks of the families that ``pruning_families.py`` prunes, at sizes for a CPU."""

from typing import Any

import torch.nn.functional as F
import torchvision.models as models
from torch import Tensor, nn


class Block(nn.Module):
    """ResNet's basic block for CIFAR (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            self.short = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.short(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def resnet56(num_classes: int) -> nn.Module:
    """ResNet-56 for CIFAR."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for width in (16, 32, 64):
        for index in range(9):
            layers.append(Block(inputs, width, 2 if index == 0 and width > 16 else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))


def resnet18(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18."""
    return models.resnet18(num_classes=num_classes)


def mobilenet_v2(num_classes: int) -> nn.Module:
    """torchvision's MobileNetV2."""
    return models.mobilenet_v2(num_classes=num_classes)


def mobilenet_v3_small(num_classes: int) -> nn.Module:
    """torchvision's MobileNetV3."""
    return models.mobilenet_v3_small(num_classes=num_classes)


def efficientnet_b0(num_classes: int) -> nn.Module:
    """torchvision's EfficientNet."""
    return models.efficientnet_b0(num_classes=num_classes)


def convnext(num_classes: int) -> nn.Module:
    """A small ConvNeXt of torchvision's blocks."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes = [(32, 64, 2), (64, 128, 2), (128, None, 2)]
    return ConvNeXt([CNBlockConfig(*size) for size in sizes], num_classes=num_classes)


def vit(num_classes: int) -> nn.Module:
    """A small ViT of torchvision's."""
    return models.VisionTransformer(32, 8, 3, 4, 128, 256, num_classes=num_classes)


def timm_vit(num_classes: int) -> nn.Module:
    """A small ViT of timm's, whose attention has one projection."""
    import timm

    options: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 4}
    return timm.models.VisionTransformer(num_classes=num_classes, **options)


class Bert(nn.Module):
    """A small BERT of transformers', called with token ids alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
        config = BertConfig(vocab_size=64, max_position_embeddings=32, num_labels=num_classes, **sizes)
        self.bert = BertForSequenceClassification(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits."""
        return self.bert(ids, return_dict=False)[0]


def bert(num_classes: int) -> nn.Module:
    """A small BERT."""
    return Bert(num_classes)


# Size of the photographs; 0 stands for tokens.
FAMILIES = {
    "resnet56": 32,
    "resnet18": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "convnext": 32,
    "vit": 32,
    "timm_vit": 32,
    "bert": 0,
}
