"""Latency, memory and placement of ONNX files, measured in processes that hold nothing else."""
