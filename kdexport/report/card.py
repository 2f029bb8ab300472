"""The model card of the file to ship, in the form that model hubs read: YAML front matter, then words.

What is not known is left out.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from kdexport import __version__, figures
from kdexport.report.decisions import costs_of, snippet
from kdexport.report.front_matter import data_name, front_matter, is_path, recipe_of, task_of, teacher_reference
from kdexport.report.join import PLAIN_STUDENT
from kdexport.report.markdown import device_table, escape
from kdexport.report.view import ConditionView, Row, condition_views, plain_comparison, quantized
from kdexport.results import ClassScore, Evaluation, ModelFile, Report, TargetScore
from kdexport.tasks import TASKS

MOST_NAMED = 20  # classes written out by name


def card(report: Report, folder: Path | None = None) -> str | None:
    """Return the card of the pick, as README.md of a model repository; None where nothing is to ship.

    Args:
        report: With a pick.
        folder: What the models' paths are relative to: where the pick's file lies there, its code is ``infer.py``'s.
    """
    view = next((view for view in condition_views(report) if view.chosen and view.pick and view.pick.model), None)
    name = report.pick.model if report.pick else view.chosen.name if view and view.chosen else None
    model = next((model for model in report.models if model.name == name), None)
    if model is None:
        return None
    sections = [
        f"# {escape(report.name)}: {escape(model.name)}",
        _opening(report, model),
        *_result(view, model),
        *_facts(model),
        "## Intended use",
        *_intended_use(model),
        "## How to use",
        *_how_to_use(model, folder),
        "## Training data",
        *_training_data(report, model),
        "## How it was made",
        *_made(report, model),
        "## Evaluation",
        *_evaluation(report, view),
        "## Limits",
        *_limits(report, model, view),
    ]
    return f"---\n{front_matter(report, model, view)}---\n\n" + "\n\n".join(sections) + "\n"


def _opening(report: Report, model: ModelFile) -> str:
    """Say what the model is: ``An 11 k-parameter digits classifier of 10 classes, distilled from ...``."""
    kind = {"image-classification": "image classifier", "text-classification": "text classifier"}.get(
        task_of(model) or ""
    )
    classes = len(model.evaluation.per_class) if model.evaluation else 0
    own = model.evaluation.task if model.evaluation else ""
    named = {"segmentation": "segmentation model", "embedding": "embedding model"}.get(own)
    what = kind or named or ("classifier" if classes else "model")
    size = "" if model.parameters is None else f"{figures.count(model.parameters)}-parameter "
    precision = "" if model.precision == "fp32" else f"{model.precision} "
    source = recipe_of(report, "data").get("source")
    trained_on = (f" for {data_name(str(source))}" if source else "") + (f" ({classes} classes)" if classes else "")
    article = "An" if re.match(r"8|11(\D|$)|18(\D|$)|int|image", f"{size}{precision}{what}") else "A"
    teacher = next((item for item in report.models if item.name == "teacher"), None)
    taught = model.name.startswith("student") and not model.name.startswith(PLAIN_STUDENT) and teacher is not None
    from_ = ""
    if taught and teacher is not None:
        count = "" if teacher.parameters is None else f" ({figures.count(teacher.parameters)} parameters)"
        from_ = f", distilled from {_teacher_name(report) or 'its teacher'}{count}"
    return escape(f"{article} {size}{precision}{what}{trained_on}{from_}.")


def _result(view: ConditionView | None, model: ModelFile) -> list[str]:
    """Say what it scores and how fast it is, against the baseline."""
    row = view.by_name.get(model.name) if view else None
    if view is None or row is None:
        return []
    costs = []
    for cost in costs_of(view):
        interval = f", {cost.against_interval}" if cost.of_score and cost.against_interval else ""
        costs.append(
            f"{figures.within_a_sentence(cost.title)} {cost.value}"
            + (f" ({cost.against}{interval})" if cost.against else "")
        )
    against = f", against {view.baseline}'s" if view.baseline != model.name else ""
    return [escape(f"On {view.title}{against}: {'; '.join(costs)}.")] if view.chosen is row else []


def _teacher_name(report: Report) -> str:
    """Return what a reader may call the teacher: its name at its source, without folders."""
    reference = teacher_reference(report)
    scheme, colon, name = reference.rpartition(":")
    if scheme.endswith(".py"):
        return f"{name} ({PurePosixPath(scheme).name})"
    return name if colon and scheme in ("hf", "timm", "torchvision") and not is_path(name) else PurePosixPath(name).name


def _facts(model: ModelFile) -> list[str]:
    facts = [f"`{_code(model.file)}`", figures.size(model.size_bytes), model.precision]
    if model.parameters is not None:
        facts.append(f"{figures.count(model.parameters)} parameters")
    if model.macs is not None:
        facts.append(f"{figures.count(model.macs)} multiply-accumulates a sample")
    if quantized(model):
        facts.append(quantized(model))
    if model.opset is not None:
        facts.append(f"opset {model.opset}")
    return [f"{', '.join(facts)}; sha256 `{model.sha256}`."]


def _intended_use(model: ModelFile) -> list[str]:
    targets = [score.name for score in model.evaluation.per_target] if model.evaluation else []
    if targets:
        return [
            f"Estimating {escape(figures.joined_names(targets, most=MOST_NAMED))}, in the units of the training data. "
            "For data like those it was trained on; every input gets a number, also one unlike all of them."
        ]
    if model.evaluation is not None and model.evaluation.task == "embedding":
        return [_embedding_use(model.evaluation)]
    names = [score.name for score in model.evaluation.per_class] if model.evaluation else []
    if not names:
        return ["For the task and the kind of data that it was trained on."]
    classes = escape(figures.joined_names(names, most=MOST_NAMED))
    if model.evaluation is not None and model.evaluation.task == "segmentation":
        return [
            f"Telling for each pixel which of {len(names)} classes it is: {classes}. For images like those it was "
            "trained on; every pixel gets one of these classes, also one that belongs to none."
        ]
    return [
        f"Telling apart {len(names)} classes: {classes}. For data like those it was trained on; every input gets one "
        "of these classes, also one that belongs to none."
    ]


def _embedding_use(evaluation: Evaluation) -> str:
    """Say what two embeddings are compared by, and from where on they count as one identity."""
    threshold = evaluation.metrics.get("threshold")
    use = (
        "Comparing two inputs by the cosine of their embeddings, vectors of length 1: the file normalizes them itself."
    )
    if threshold is not None:
        use += (
            f" From a cosine of {threshold:.3f} on two inputs count as one identity: the threshold at which most was "
            "right on the validation split, whose identities were not learned from. Choose a higher one where a false "
            "acceptance costs more than a false rejection."
        )
    return f"{use} For data like those it was trained on."


def _how_to_use(model: ModelFile, folder: Path | None) -> list[str]:
    code = _code_of(folder / model.file) if folder is not None else None
    beside = f"beside `{_code(PurePosixPath(model.file).name)}`"
    if code is None:
        return [f"With ONNX Runtime, {beside}:", f"```python\n{snippet(model)}```"]
    return [f"Save this as `infer.py` {beside}:", f"```python\n{code}```"]


def _code_of(path: Path) -> str | None:
    """Return the program that stands beside a file as ``infer.py``; None where there is no such file, or no ONNX."""
    if not path.is_file():
        return None
    from google.protobuf.message import DecodeError

    from kdexport.onnx import example

    try:
        return example.code(path)
    except DecodeError:
        return None


def _training_data(report: Report, model: ModelFile) -> list[str]:
    source = recipe_of(report, "data").get("source")
    if source is None:
        return ["Not recorded."]
    tested = ""
    if model.evaluation:
        tested = f" Tested on {model.evaluation.samples:,} samples of its {escape(model.evaluation.split)} split"
        cut = report.tested_on if report.tested_on != "source" else ""
        tested += f" ({escape(cut.removeprefix('source: '))})." if cut else "."
    return [f"`{_code(data_name(str(source)))}`.{tested}"]


def _made(report: Report, model: ModelFile) -> list[str]:
    distill = recipe_of(report, "distill")
    if not distill:
        return [f"Its training is not recorded. Measured with kdexport {__version__}."]
    said = distill.get("terms", ())
    tables = said if isinstance(said, list | tuple) else ()
    usual = TASKS[model.evaluation.task].usual_terms if model.evaluation and model.evaluation.task in TASKS else ()
    if usual and [table.get("method") for table in tables if isinstance(table, Mapping)] == ["dist"]:
        tables = usual  # the recipe named none
    terms = [
        f"{term.get('method')} (weight {term.get('weight', 1)}"
        + (f", temperature {term['temperature']:g})" if isinstance(term.get("temperature"), int | float) else ")")
        for term in tables
        if isinstance(term, Mapping)
    ]
    if model.name.startswith("student-plain"):
        words = "Trained on the labels alone, without a teacher"
    elif model.name.startswith("student"):
        words = (
            f"Distilled from {_teacher_name(report) or 'a teacher'} with {', '.join(terms) or 'no term'}, "
            f"label weight {distill.get('label_weight')}"
        )
    else:
        words = f"The teacher itself, {_teacher_name(report)}" if _teacher_name(report) else "The teacher itself"
    words += f"; {distill.get('epochs')} epochs, {distill.get('optimizer')}, seed {(report.recipe or {}).get('seed')}."
    proof = []
    if model.parity is not None and model.parity.passed:
        proof = [
            f"The ONNX file was compared with its {escape(model.parity.reference)} reference on {model.parity.samples} "
            f"samples: largest relative difference {model.parity.max_rel:.1e} (tolerance {model.parity.tolerance:.0e})."
        ]
    return [escape(words), *_cut(report, model), *proof, f"Made with kdexport {__version__}."]


def _cut(report: Report, model: ModelFile) -> list[str]:
    """Return that a student is a pruned teacher, in a sentence."""
    pruned = next((item.pruned for item in report.models if item.pruned is not None), None)
    if pruned is None or not model.name.startswith("student"):
        return []
    (_, before, after), *_ = figures.cut_totals(pruned)
    blocks = sum(layer.after is None for layer in pruned.layers)
    parts = [f"channels taken out by {pruned.importance}"] if pruned.keep is not None else []
    parts += [f"{blocks} blocks taken out"] if blocks else []
    return [f"It began as the teacher with {' and '.join(parts)}: {before} parameters became {after}."]


def _evaluation(report: Report, view: ConditionView | None) -> list[str]:
    lines = ["The score is that of the ONNX file in ONNX Runtime; intervals are 95 %, differences paired by sample."]
    if view is not None and view.pick is not None:
        lines.append("\n".join(device_table(view, level=3)))
    picked = next((item for item in report.models if view and view.chosen and item.name == view.chosen.name), None)
    if picked is not None and picked.evaluation is not None and picked.evaluation.per_target:
        lines.append("\n".join(_target_table(picked.evaluation.per_target)))
    if picked is not None and picked.evaluation is not None:
        lines.append("\n".join(_iou_table(picked.evaluation.per_class)))
    plain = plain_comparison(report)
    if plain is not None:
        lines.append("\n".join(f"- {escape(line)}" for line in report.findings if line.startswith("Distillation")))
    return [line for line in lines if line]


def _iou_table(rows: Sequence[ClassScore]) -> list[str]:
    """Return a line for each class of which pixels are scored; none where samples are."""
    found = [row for row in rows if row.iou is not None]
    head = ["| class | IoU | recall | precision | pixels |", "|---|---:|---:|---:|---:|"] if found else []
    return head + [
        f"| {escape(row.name)} | {figures.percent(row.iou)} | {figures.percent(row.accuracy)} | "
        f"{figures.UNKNOWN if row.precision is None else figures.percent(row.precision)} | {row.samples:,} |"
        for row in found
        if row.iou is not None
    ]


def _target_table(rows: Sequence[TargetScore]) -> list[str]:
    """Return a line for each target, in its own unit."""
    head = ["| target | MAE | RMSE | R² | off by, on average |", "|---|---:|---:|---:|---:|"]
    return head + [
        f"| {escape(row.name)} | {figures.plain(row.mae)} | {figures.plain(row.rmse)} | "
        f"{figures.UNKNOWN if row.r2 is None else f'{row.r2:.3f}'} | {figures.signed_plain(row.bias)} |"
        for row in rows
    ]


def _limits(report: Report, model: ModelFile, view: ConditionView | None) -> list[str]:
    limits = [*report.data_warnings, *(f"{name} was left out: {why}" for name, why in report.left_out.items())]
    if model.evaluation is not None and model.evaluation.per_class:
        scored = [score for score in model.evaluation.per_class if score.samples]
        worst = min(scored, key=lambda score: score.accuracy if score.iou is None else score.iou, default=None)
        if worst is not None and worst.iou is not None:
            limits.append(f"Weakest on the class {worst.name}: IoU {figures.percent(worst.iou)}.")
        elif worst is not None:
            recall = f"recall {figures.percent(worst.accuracy)} of {worst.samples} samples"
            limits.append(f"Weakest on the class {worst.name}: {recall}.")
    for target in model.evaluation.per_target if model.evaluation else ():
        if target.true:
            seen = f"{figures.plain(min(target.true))} to {figures.plain(max(target.true))}"
            limits.append(f"Tested where {target.name} is {seen}; beyond that nothing is known.")
    row: Row | None = view.by_name.get(model.name) if view else None
    if row is not None and view is not None:
        limits.append(f"Latency holds for {view.title}; other hardware may order the models otherwise.")
    if model.score is None:
        limits.append("Its score was not measured.")
    limits += [f"{line}" for line in model.notes]
    limits.append(
        "Not evaluated on shifted, adversarial or out-of-distribution inputs, nor for fairness between groups."
    )
    return ["\n".join(f"- {escape(line)}" for line in limits)]


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
