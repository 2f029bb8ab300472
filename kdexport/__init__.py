"""kdexport: distill, export, measure, decide."""

__version__ = "0.1.0"
