"""How `kdexport distill --show-layers` looks on a terminal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdexport.distill.show_layers import ShownLayers


def shown(layers: "ShownLayers") -> Any:
    """Return both networks' layers and the suggested pairs, ready to print."""
    from rich.console import Group
    from rich.table import Table

    parts: list[Any] = []
    for title, rows in (("student", layers.student), ("teacher", layers.teacher)):
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("stage", justify="right")
        for column in ("layer", "kind", "gives"):
            table.add_column(column, overflow="fold")
        for row in rows:
            gives = " x ".join(map(str, row.shape)) if row.usable else "runs several times: cannot be named"
            table.add_row("" if row.stage is None else str(row.stage), row.path, row.kind, gives)
        parts += [table, ""]
    pairs = Table(
        title="pairs to begin with (student_layer, teacher_layer)", title_justify="left", title_style="bold", box=None
    )
    pairs.add_column("student")
    pairs.add_column("teacher")
    for student, teacher in layers.suggested:
        pairs.add_row(student, teacher)
    return Group(*parts, pairs)
