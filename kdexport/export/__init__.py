"""The export stage: from networks to ONNX files that are proved. Start at ``stage``."""

from kdexport.stage_module import make_callable

make_callable(__name__)
