"""Results as Python shows them: a table where one is printed, the whole page where a notebook displays it."""

import html as markup
import io
from functools import singledispatch
from typing import Any

from kdexport.report.html import html
from kdexport.report.stage import report
from kdexport.report.terminal import terminal
from kdexport.results import BenchResult, Report

WIDTH = 100  # columns
HEIGHT = 720  # pixels of the page within a notebook


@singledispatch
def text(result: Any) -> str:
    """Return a result as the terminal shows it, without colors."""
    return repr(result)


@text.register
def _report(result: Report) -> str:
    from rich.console import Console

    written = io.StringIO()
    Console(file=written, width=WIDTH, color_system=None).print(terminal(result, WIDTH))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()).rstrip()


@text.register
def _bench(result: BenchResult) -> str:
    return _report(report([result]))


def page(result: Report | BenchResult) -> str:
    """Return a result's HTML report in a frame of its own, so that its styles and scripts stay there."""
    whole = html(result if isinstance(result, Report) else report([result]))
    return f'<iframe srcdoc="{markup.escape(whole)}" width="100%" height="{HEIGHT}" style="border:0"></iframe>'
