"""The export stage: from networks to ONNX files that are proved. Start at ``stage``."""
