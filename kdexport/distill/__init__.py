"""From a teacher to a student: `stage.py` first, then `trainer.py`; what is minimized: `objective.py` and `losses/`."""

from kdexport.stage_module import make_callable

make_callable(__name__)
