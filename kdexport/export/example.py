"""``infer.py``: a complete example beside the student's file, with numpy and onnxruntime and nothing else."""

from pathlib import Path

from kdexport import artifacts

# Under 30 lines, so that it can be read before it is run. It reads all it needs to know from the file's metadata.
TEXT = '''"""Classify samples with {file}. Needs numpy and onnxruntime: python infer.py samples.npy"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(Path(__file__).with_name("{file}"), providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
labels = json.loads(metadata.get("kdexport.labels", "[]"))
prepare = json.loads(metadata.get("kdexport.preprocessing", "{{}}"))
feed = dict(zip([item.name for item in session.get_inputs()], map(np.load, sys.argv[1:]), strict=True))
first = session.get_inputs()[0]
if prepare.get("kind") == "image" and first.type == "tensor(float)":  # not in the graph: uint8 NHWC to normalized NCHW
    pixels = (feed[first.name] / 255 - prepare.get("mean", 0)) / prepare.get("std", 1)
    feed[first.name] = pixels.transpose(0, 3, 1, 2).astype(np.float32)
scores = session.run(None, feed)[0]
for number, best in enumerate(scores.argmax(axis=1)):
    print(number, labels[best] if labels else best, f"{{scores[number, best]:.3f}}")
'''


def write(model: Path) -> Path:
    """Write ``infer.py`` beside a file and return its path."""
    path = model.with_name("infer.py")
    artifacts.write_text(path, TEXT.format(file=model.name))
    return path
