"""From figures to a decision: trade-offs, a pick, a gate, and the pages that show them. Open ``stage.py`` first."""
