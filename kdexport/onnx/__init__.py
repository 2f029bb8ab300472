"""What several stages need of ONNX files: reading, sessions, metadata, writing."""
