"""The pairs that engine_vs_plain_loop.py and engine_vs_torchdistill.py train, and the loop that tutorials teach.

Both sides of a pair have the same networks, teacher weights, images in memory, batch, epochs, optimizer, learning rates
and threads. What differs is what is compared: a DataLoader that makes each sample a picture and transforms it, and a
teacher that runs in each step, against batches gathered by index and a teacher whose answers are kept.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_nets import MLP, RESNET
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kdexport.models.networks import load_network

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Pair:
    """One pair of networks and how its student is trained."""

    name: str
    teacher: tuple[str, dict[str, Any]]  # reference and arguments
    student: tuple[str, dict[str, Any]]
    grey28: bool  # 28x28 grey images, else 32x32 in color
    images: int
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    milestones: tuple[float, ...]  # shares of the training after which the rate is a tenth; empty: constant
    label_weight: float
    temperature: float
    augmented: bool  # flip, and crop after padding by 4
    views: int  # kdexport's: after so many epochs the cache is full
    teacher_images: int
    teacher_training: dict[str, Any]

    @property
    def steps(self) -> int:
        return -(-self.images // self.batch_size)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return ((0.48,), (0.24,)) if self.grey28 else (CIFAR_MEAN, CIFAR_STD)

    def recipe(self, data: Path, seed: int, teacher: dict[str, Any]) -> dict[str, Any]:
        """Return kdexport's recipe; ``teacher`` holds its weights or its training."""
        mean, std = self.normalization
        preprocessing = {"mean": mean, "std": std}
        return {
            "name": self.name,
            "seed": seed,
            "data": {"source": f"npz:{data.resolve()}"},
            "teacher": {"model": self.teacher[0], "args": self.teacher[1], "preprocessing": preprocessing, **teacher},
            "student": {"model": self.student[0], "args": self.student[1], "preprocessing": preprocessing},
            "distill": {
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "optimizer": self.optimizer,
                "lr": self.lr,
                "weight_decay": self.weight_decay,
                **(
                    {"schedule": "step", "milestones": self.milestones} if self.milestones else {"schedule": "constant"}
                ),
                "label_weight": self.label_weight,
                "terms": [{"method": "soft_targets", "weight": 1 - self.label_weight, "temperature": self.temperature}],
                "augment": ["flip", "shift"] if self.augmented else [],
                "views": self.views,
                "keep": "last",
                "baseline": False,
            },
        }

    def networks(self, teacher_weights: str, seed: int) -> tuple[nn.Module, nn.Module]:
        """Return the teacher, frozen, and a fresh student."""
        from kdexport.models.weights import load_weights

        teacher = load_network(*self.teacher, 10)
        load_weights(teacher, Path(teacher_weights))
        torch.manual_seed(seed)
        return teacher.eval().requires_grad_(False), load_network(*self.student, 10)

    def make_optimizer(self, student: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer as a tutorial writes it: torch's defaults but for the rates."""
        if self.optimizer == "sgd":
            options = {"momentum": 0.9, "nesterov": True, "weight_decay": self.weight_decay}
            return torch.optim.SGD(student.parameters(), lr=self.lr, **options)
        return torch.optim.AdamW(student.parameters(), lr=self.lr, weight_decay=self.weight_decay)


# Loss, optimizer, rate and batch of PyTorch's own "Knowledge Distillation Tutorial"; widths of Hinton et al. 2015.
MLP_PAIR = Pair(
    name="mlp", teacher=(MLP, {"hidden": [1200, 1200]}), student=(MLP, {"hidden": [800]}),
    grey28=True, images=156 * 128, epochs=10, batch_size=128, optimizer="adamw", lr=0.001, weight_decay=0.0,
    milestones=(), label_weight=0.75, temperature=2.0, augmented=False, views=1, teacher_images=156 * 128,
    teacher_training={"epochs": 5, "lr": 0.001, "keep": "last"},
)  # fmt: skip
# torchdistill's own CIFAR-10 example of knowledge distillation (resnet20_from_densenet...-final_run.yaml): batch 64,
# SGD at 0.1, a tenth of it at half and three quarters of the training, T = 4, labels 0.9. Here with Nesterov's momentum
# on all sides: kdexport has no other. Too short for kdexport to try memory layouts first: it trains as networks come.
RESNET_PAIR = Pair(
    name="resnet", teacher=(RESNET, {"depth": 56}), student=(RESNET, {"depth": 20}),
    grey28=False, images=24 * 64, epochs=6, batch_size=64, optimizer="sgd", lr=0.1, weight_decay=1e-4,
    milestones=(0.5, 0.75), label_weight=0.9, temperature=4.0, augmented=True, views=2, teacher_images=80 * 64,
    teacher_training={"epochs": 4, "lr": 0.003, "augment": ["flip", "shift"], "keep": "last"},
)  # fmt: skip


class InMemory(Dataset):
    """What torchvision's MNIST and CIFAR10 do: arrays in memory, each sample a picture that is then transformed."""

    def __init__(self, data: Path, pair: Pair) -> None:
        from torchvision import transforms

        with np.load(data) as archive:
            self._images, self._labels = archive["x_train"], archive["y_train"]
        if pair.grey28:
            self._images = self._images[..., 0]
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if pair.augmented else []
        self._transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(*pair.normalization)])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


def loader(data: Path, pair: Pair, workers: int) -> DataLoader:
    """Return a DataLoader as tutorials make it; its workers live on from epoch to epoch, which helps it here."""
    # Forked as they are for whoever starts a script; within a spawned process they would be spawned.
    more = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    return DataLoader(InMemory(data, pair), pair.batch_size, shuffle=True, num_workers=workers, **more)


def plain_loop(
    pair: Pair, data: Path, teacher_weights: str, seed: int, workers: int, place: Path, epochs: int | None = None
) -> dict[str, Any]:
    """Train as tutorials do and return the seconds of each epoch and the student's file."""
    teacher, student = pair.networks(teacher_weights, seed)
    epochs = epochs or pair.epochs
    batches, optimizer = loader(data, pair, workers), pair.make_optimizer(student)
    marks = [int(share * epochs) for share in pair.milestones]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, marks, 0.1)
    kl, cross_entropy = nn.KLDivLoss(reduction="batchmean"), nn.CrossEntropyLoss()
    temperature = pair.temperature
    student.train()
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        running = 0.0
        for inputs, labels in batches:
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            logits = student(inputs)
            soft = kl(
                nn.functional.log_softmax(logits / temperature, dim=1),
                nn.functional.softmax(teacher_logits / temperature, dim=1),
            )
            labelled = cross_entropy(logits, labels)
            loss = (1 - pair.label_weight) * temperature**2 * soft + pair.label_weight * labelled
            loss.backward()
            optimizer.step()
            running += loss.item()
        scheduler.step()
        seconds.append(time.perf_counter() - start)
    return {"epoch_seconds": seconds, "seconds": sum(seconds), "weights": saved(student, place)}


def saved(student: nn.Module, place: Path) -> str:
    """Write a student's weights and return the file."""
    from kdexport.models.weights import save_weights

    place.mkdir(parents=True, exist_ok=True)
    save_weights(student, place / "student.safetensors")
    return str(place / "student.safetensors")
