"""One requirement: where the limit is, where the figure and its interval are."""

from markupsafe import Markup

from kdexport.report.charts.svg import Scale, picture, tag
from kdexport.results import Gate


def bullet(gate: Gate, *, label: str, width: int = 220) -> Markup:
    """Draw the limit as a line, what it allows as a band, the figure as a dot, its interval as a whisker."""
    value = gate.value if gate.value is not None else gate.limit
    low, high = gate.ci95 or (value, value)
    ends = [low, high, gate.limit, value]
    ends += [] if gate.requirement == "min_score" else [0.0]
    pad = (max(ends) - min(ends)) * 0.08 or 1.0
    across = Scale(
        min(ends) - (pad if min(ends) < 0 or gate.requirement == "min_score" else 0),
        max(ends) + pad,
        3.0,
        width - 3.0,
    )
    limit, middle = across(gate.limit), 11.0
    at_least = gate.requirement.startswith("min_")
    start, end = (limit, across.end) if at_least else (across.start, limit)
    style = {"pass": "pass", "undecided": "undecided"}.get(gate.verdict, "fail")
    drawn = [
        tag("rect", x=across.start, y=middle - 3, width=across.end - across.start, height=6, rx=3, class_="rail"),
        tag("rect", x=start, y=middle - 3, width=max(end - start, 0.0), height=6, rx=3, class_="allowed"),
    ]
    if gate.value is not None:
        if gate.ci95 is not None:
            drawn.append(tag("line", x1=across(low), x2=across(high), y1=middle, y2=middle, class_=f"reaches {style}"))
        drawn.append(tag("circle", cx=across(value), cy=middle, r=5, class_=f"figure {style}"))
    drawn.append(tag("line", x1=limit, x2=limit, y1=1, y2=21, class_="bound"))
    return picture(width, 22, label, *drawn)
