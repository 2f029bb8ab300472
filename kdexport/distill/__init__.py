"""From a teacher to a student: `stage.py` first, then `trainer.py`; what is minimized: `objective.py` and `losses/`."""
