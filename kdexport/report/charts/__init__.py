"""The report's pictures as SVG: drawn once, shown on the page and beside report.md.

Colors are CSS variables (``style.css``), so that one drawing serves light, dark and print. No picture knows a report;
each takes plain values and returns markup in which every text is escaped.
"""
