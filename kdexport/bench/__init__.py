"""Latency, memory and placement of ONNX files, measured in processes that hold nothing else."""

from kdexport.stage_module import make_callable

make_callable(__name__)
