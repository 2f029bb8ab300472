"""What model hubs read at the head of a card: YAML front matter with the metrics, in the hub's own names.

It follows the Hugging Face model card metadata (`license`, `base_model`, `datasets`, `model-index`). What is not known
is left out.
"""

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from kdexport.report import scores
from kdexport.report.view import ConditionView
from kdexport.results import ModelFile, Report

# Of the identifiers that the hub takes for a license, those that weights come under.
HUB_LICENSES = """
    apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 afl-3.0 artistic-2.0 bsl-1.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc ms-pl mpl-2.0 ncsa odbl odc-by openrail osl-3.0
    pddl postgresql unlicense wtfpl zlib cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 unknown other
"""
# What the hub calls a metric -> for people.
METRICS = {
    "macro_f1": ("f1", "Macro F1"),
    "rmse": ("rmse", "RMSE"),
    "r2": ("r_squared", "R²"),
    "auc": ("roc_auc", "AUC of verification"),
    "tar_at_far_1": ("tar_at_far_1", "True acceptance rate at a false acceptance rate of 1 %"),
    "top1_retrieval": ("top1_retrieval", "Top-1 retrieval"),
    "threshold": ("threshold", "Threshold of validation, a cosine"),
    "pearson": ("pearsonr", "Pearson correlation"),
}
# What torchvision's and scikit-learn's data sets are called on the hub.
HUB_DATASETS = {
    "torchvision:CIFAR10": "uoft-cs/cifar10",
    "torchvision:CIFAR100": "uoft-cs/cifar100",
    "torchvision:MNIST": "ylecun/mnist",
    "torchvision:FashionMNIST": "zalando-datasets/fashion_mnist",
    "torchvision:ImageNet": "ILSVRC/imagenet-1k",
}


def front_matter(report: Report, model: ModelFile, view: ConditionView | None) -> str:
    """Return the lines between the two ``---`` of a card of the file to ship; metrics of speed are the view's."""
    tags = ["onnx", "onnxruntime", "kdexport"]
    tags += ["knowledge-distillation"] if any(item.name == "teacher" for item in report.models) else []
    tags += ["quantization"] if model.precision != "fp32" else []
    task = task_of(model)
    source = str(recipe_of(report, "data").get("source", ""))
    data: dict[str, Any] = {
        **_license(recipe_of(report, "export").get("license")),
        "library_name": "onnx",
        "tags": tags,
        "base_model": _on_hub(teacher_reference(report)),
        "datasets": [dataset] if source and (dataset := _dataset_id(source)) else None,
        "pipeline_tag": task,
    }
    data = {key: value for key, value in data.items() if value}
    metrics = _metrics(model, view)
    if metrics:
        source = source or "unknown"
        split = model.evaluation.split if model.evaluation else "test"
        data["model-index"] = [
            {
                "name": f"{report.name}-{model.name}",
                "results": [
                    {
                        "task": {"type": task or "other"},
                        "dataset": {"name": data_name(source), "type": data_name(source), "split": split},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return "\n".join(_yaml(data)) + "\n"


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Write dicts and lists in block style, and all else as JSON: no name can break out of its quotes."""
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            nested = isinstance(item, Mapping | list)
            lines += (
                [f"{indent}{key}:", *_yaml(item, indent + "  ")] if nested else [f"{indent}{key}: {json.dumps(item)}"]
            )
        return lines
    if isinstance(value, list):
        lines = []
        for item in value:
            first, *rest = _yaml(item, indent + "  ")
            lines += [f"{indent}- {first.lstrip()}", *rest]
        return lines
    return [f"{indent}{json.dumps(value)}"]


def _metrics(model: ModelFile, view: ConditionView | None) -> list[dict[str, Any]]:
    metrics: list[dict[str, Any]] = []
    if model.score is not None:
        name = f"{scores.of(model.score).title} in ONNX Runtime"
        metrics.append({"type": model.score.metric, "value": round(model.score.value, 6), "name": name})
    beside = model.evaluation.metrics if model.evaluation else {}
    for key, value in beside.items():
        if value is not None:
            kind, name = METRICS.get(key, (key, key.replace("_", " ").capitalize()))
            metrics.append({"type": kind, "value": round(value, 6), "name": name})
    row = view.by_name.get(model.name) if view else None
    if row is not None and view is not None:
        latency = row.measurement.latency_ms.p50
        metrics.append({"type": "latency", "value": round(latency, 6), "name": f"Median latency in ms, {view.title}"})
    return metrics


def teacher_reference(report: Report) -> str:
    """Return the recipe's reference of the teacher; empty where it has none."""
    return str(recipe_of(report, "teacher").get("model") or "")


def _on_hub(reference: str) -> str | None:
    """Return a reference's name on the Hugging Face hub, where it has one."""
    scheme, _, name = reference.partition(":")
    if scheme == "timm":
        return f"timm/{name.removeprefix('timm/')}"
    return name if scheme == "hf" and not is_path(name) else None


def is_path(name: str) -> bool:
    """Whether a name is of a file or folder, and not of something on a hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _license(license_: Any) -> dict[str, str]:
    """Return the hub's keys for a license: one that it knows, else other with its name; it refuses a card otherwise."""
    if not isinstance(license_, str) or not license_.strip():
        return {}
    name = re.sub(r"[^a-z0-9.+]+", "-", license_.lower()).strip("-")
    known = name.removesuffix("-only").removesuffix("-or-later")
    return {"license": known} if known in HUB_LICENSES.split() else {"license": "other", "license_name": name}


def _dataset_id(source: str) -> str | None:
    """Return a data source as the hub's ``datasets`` takes it: the hub's own name, or one that could be; else None."""
    name = HUB_DATASETS.get(source, data_name(source))
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None


def task_of(model: ModelFile) -> str | None:
    """Return the hub's name of the task, where what is known leaves no doubt."""
    own = model.evaluation.task if model.evaluation else "classification"
    if own == "regression" and all(len(shape) == 2 for shape in model.inputs.values()):
        return "tabular-regression"
    if own == "embedding" and "input_ids" in model.inputs:
        return "sentence-similarity"
    pictures = len(model.inputs) == 1 and all(len(shape) == 4 for shape in model.inputs.values())
    if own in ("classification", "multilabel"):
        text = any(name in model.inputs for name in ("input_ids", "attention_mask"))
        return "image-classification" if pictures else "text-classification" if text else None
    of_pictures = {
        "segmentation": "image-segmentation",
        "detection": "object-detection",
        "embedding": "image-feature-extraction",
    }
    return of_pictures.get(own) if pictures else None


def recipe_of(report: Report, section: str) -> Mapping[str, Any]:
    """Return a table of the recipe that a report was made by; empty where there is none."""
    found = (report.recipe or {}).get(section)
    return found if isinstance(found, Mapping) else {}


def data_name(source: str) -> str:
    """Return a data source without the folder it lies in: a card is published, a path is nobody's business."""
    scheme, colon, rest = source.partition(":")
    if scheme == "hf" and not is_path(rest):
        return rest
    return f"{scheme}{colon}{PurePosixPath(rest).name}" if colon else PurePosixPath(source).name
