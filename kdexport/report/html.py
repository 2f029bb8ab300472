"""report.html: one file that opens from disk, with no network, on any screen."""

from kdexport.report.markdown import markdown
from kdexport.results import Report


def html(report: Report) -> str:
    """Return the page."""
    from markupsafe import escape

    text, title = escape(markdown(report)), escape(report.name)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><pre>{text}</pre></html>'
