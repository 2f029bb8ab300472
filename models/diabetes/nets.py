"""Networks of the diabetes pair, and its data: inputs [batch, 10], standardized, outputs [batch, 1]."""

from typing import Any

from torch import Tensor, nn


def diabetes() -> dict[str, Any]:
    """Return scikit-learn's 442 patients: ten measurements at the start, how far the disease had come a year later."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    return {
        "train": (found.data, found.target),
        "feature_names": found.feature_names,
        "target_names": ["progression"],
    }


class Teacher(nn.Module):
    """Three layers; 18,000 parameters at width 128."""

    def __init__(self, width: int = 128, dropout: float = 0.3, num_classes: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(10, width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.head = nn.Linear(width, num_classes)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(self.layers(numbers))


class Student(nn.Module):
    """Two layers; 193 parameters at width 16."""

    def __init__(self, width: int = 16, num_classes: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(self.layers(numbers))
