"""How `kdexport export` shows its results on a terminal."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdexport.export.describe import Description
    from kdexport.results import ExportResult


def table(result: "ExportResult", again: str) -> Any:
    """Return a table of files with their proofs, the notes on each, and what to do next."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=f"{result.name}: exported", title_justify="left", title_style="bold", box=None, pad_edge=False)
    shown.add_column("file", no_wrap=True, overflow="fold")
    for column in ("precision", "KiB", "nodes", "max rel", "argmax", "samples", "runtime"):
        shown.add_column(column, justify="right")
    notes = []
    for model in result.models:
        proof = model.parity
        shown.add_row(
            model.file,
            model.precision,
            f"{model.size_bytes / 1024:,.1f}",
            str(sum(model.operators.values())),
            "" if proof is None else f"{proof.max_rel:.1e}",
            "" if proof is None or proof.argmax_agreement is None else f"{proof.argmax_agreement:.4f}",
            "" if proof is None else str(proof.samples),
            "" if model.oldest_runtime is None else f">= {model.oldest_runtime}",
        )
        if model.operators_before:
            before = sum(model.operators_before.values())
            notes.append(f"{model.file}: {before} nodes before optimization")
        notes += [f"{model.file}: {note}" for note in model.notes]
    return Group(shown, "", *(Text(note) for note in notes), f"next: {again}")


def description(found: "Description") -> Any:
    """Return what a file holds, a line a fact."""
    from rich.table import Table

    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    shown.add_row("file", found.file)
    shown.add_row("size", f"{found.size_bytes:,} bytes, {found.weights:,} weights")
    shown.add_row("sha256", found.sha256)
    shown.add_row("written by", found.producer or "(not said)")
    runtime = f", loads in onnxruntime >= {found.oldest_runtime}" if found.oldest_runtime else ""
    shown.add_row("opset", f"{found.opset}, IR {found.ir_version}{runtime}")
    for kind, values in (("input", found.inputs), ("output", found.outputs)):
        for name, value in values.items():
            shown.add_row(kind, f"{name}: {value['type']} {value['shape']}")
    shown.add_row("operators", ", ".join(f"{name} {count}" for name, count in found.operators.items()))
    for name, value in found.metadata.items():
        shown.add_row(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return shown
