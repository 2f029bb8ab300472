"""``infer.py``: a complete example beside a file, with numpy and onnxruntime; Pillow or transformers read raw inputs.

It holds what its file needs and nothing else, so that it can be read before it is run. It is the user's to change: one
that was changed, or was there before, is not replaced unasked.
"""

import hashlib
import json
from pathlib import Path

import onnx

from kdexport import artifacts
from kdexport.onnx import metadata

SIGNATURE = "# kdexport: "

HEAD = '''"""Run {file}: python infer.py {usage}"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(Path(__file__).with_name("{file}"), providers=["CPUExecutionProvider"])
metadata, inputs = session.get_modelmeta().custom_metadata_map, session.get_inputs()
labels, prepare = (json.loads(metadata.get(f"kdexport.{{key}}", "[]")) for key in ("labels", "preprocessing"))
given, kinds = sys.argv[1:], [item.type[7:-1].replace("float16", "half").replace("float", "float32") for item in inputs]
if all(name.endswith(".npy") for name in given or sys.exit(__doc__)):  # one for each input, its first axis samples
    arrays = [np.load(name) for name in given]
'''
PICTURES = """else:  # pictures, at the size that the file takes
    from PIL import Image, ImageOps

    pictures = [ImageOps.fit(Image.open(name).convert("{mode}"), ({width}, {height}){method}) for name in given]
    arrays = [np.stack([np.asarray(picture).reshape({height}, {width}, -1) for picture in pictures])]
"""
SQUASHED = """else:  # pictures, at the size that the file takes
    from PIL import Image

    pictures = [Image.open(name).convert("{mode}").resize(({width}, {height}){method}) for name in given]
    arrays = [np.stack([np.asarray(picture).reshape({height}, {width}, -1) for picture in pictures])]
"""
ANY_SIZE = """else:  # pictures of one size, which the file itself resizes
    from PIL import Image

    arrays = [np.stack([np.atleast_3d(Image.open(name).convert("{mode}")) for name in given])]
"""
SENTENCES = """else:  # sentences
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepare["tokenizer"].removeprefix("hf:"), trust_remote_code=False)
    found = tokenizer(given, padding=True, truncation=True, max_length=prepare.get("length"), return_tensors="np")
    arrays = [found["input_ids"], found["attention_mask"]][: len(inputs)]
"""
TOKENIZED = """else:  # sentences
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("{file}")))  # it cuts and pads as in training
    found = tokenizer.encode_batch(given)
    arrays = [np.array([item.ids for item in found]), np.array([item.attention_mask for item in found])]
"""
TABLE = """else:  # CSV files, whose columns have the features' names
    import csv

    rows = [row for name in given for row in csv.DictReader(Path(name).open(newline="", encoding="utf-8-sig"))]
    arrays = [np.array([[float(row[name]) for name in json.loads(metadata["kdexport.features"])] for row in rows])]
"""
STANDARDIZED = """arrays[0] = (arrays[0] - prepare["mean"]) / prepare["std"]
"""
NORMALIZED = """arrays[0] = ((arrays[0] / 255 - prepare.get("mean", 0)) / prepare.get("std", 1)).transpose(0, 3, 1, 2)
"""
RUN = """feed = {item.name: array.astype(kind) for item, array, kind in zip(inputs, arrays, kinds, strict=True)}
"""
BEST = """scores = session.run(None, feed)[0]
for number, best in enumerate(scores.argmax(axis=1)):
    print(number, labels[best] if labels else best, f"{scores[number, best]:.3f}")
"""
NUMBERS = """predicted = session.run(None, feed)[0]
for number, row in enumerate(predicted.reshape(len(predicted), -1)):
    print(number, *(f"{name} {value:.6g}" for name, value in zip(labels or [""] * len(row), row, strict=True)))
"""
RANKED = """scores, best = session.run(["top_scores", "{names}"], feed)
for number, (row, names) in enumerate(zip(scores, best, strict=True)):
    print(number, *(f"{{name}} {{score:.3f}}" for name, score in zip(names, row, strict=True)))
"""
COSINES = """vectors = session.run(None, feed)[0]
vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
print(f"{len(vectors)} embeddings of {vectors.shape[1]} numbers; the cosine of each with each:")
print(np.array_str(vectors @ vectors.T, precision=3, suppress_small=True))
"""
VERIFIED = """threshold = float(metadata["kdexport.threshold"])  # chosen on the validation samples
for one, other in zip(*np.triu_indices(len(vectors), 1), strict=True):
    same = "the same identity" if vectors[one] @ vectors[other] >= threshold else "two identities"
    print(f"{one} and {other}: {same} (threshold {threshold:.3f})")
"""
MASKS = """masks = session.run(None, feed)[0].argmax(axis=1).astype(np.uint8)  # class ids [batch, height, width]
colors = [[255 * (number >> bit & 1) // (1 + (number > 7)) for bit in range(3)] for number in range(256)]
for number, mask in enumerate(masks):
    ids, counts = np.unique(mask, return_counts=True)
    shares = [f"{labels[best] if labels else best} {share:.1%}" for best, share in zip(ids, counts / mask.size)]
    name = Path(given[number]).stem if len(given) == len(masks) else f"sample-{number}"
    print(f"{name}.mask.png", *shares, sep=", ")
    from PIL import Image

    picture = Image.fromarray(mask)
    picture.putpalette(sum(colors, []))  # a pixel's value stays its class id
    picture.save(f"{name}.mask.png")
"""
SHAPES = """for item, array in zip(session.get_outputs(), session.run(None, feed), strict=True):
    print(item.name, array.dtype, array.shape)
"""


def write(model: Path, *, force: bool = False) -> Path | None:
    """Write ``infer.py`` beside a file.

    Args:
        model: The ONNX file.
        force: Whether one that is the user's own is replaced.

    Returns:
        Its path, or None where the user's own is there and stays.
    """
    path = model.with_name("infer.py")
    if path.exists() and not force and not _is_ours(path):
        return None
    text = code(model)
    artifacts.write_text(path, f"{text}{SIGNATURE}{_digest(text)}\n")
    return path


def code(model: Path) -> str:
    """Return a program that runs a file on arrays, pictures or sentences, whichever it takes."""
    graph = onnx.load(model, load_external_data=False).graph
    known = metadata.read(model)
    prepare = json.loads(known.get("kdexport.preprocessing", "{}"))
    first, outputs = graph.input[0].type.tensor_type, {item.name: item.type.tensor_type for item in graph.output}
    raw = first.elem_type == onnx.TensorProto.UINT8
    sizes = [dim.dim_value for dim in first.shape.dim]
    reading, usage = "", " ".join(f"{item.name}.npy" for item in graph.input)
    if prepare.get("kind") == "image" and len(sizes) == 4:
        height, width, channels = sizes[1:] if raw else (*(prepare.get("size") or sizes[2:]), sizes[1])
        crop = prepare.get("resize") == "crop"
        share = prepare.get("crop_share", 1.0)
        form = ANY_SIZE if not (height and width) else PICTURES if crop else SQUASHED
        method = f", {3 if prepare.get('resample') == 'bicubic' else 2}"  # Pillow's numbers: 2 is bilinear
        method += f", bleed={(1 - share) / 2:g}" if crop else ""  # is cut off each side
        reading = form.format(height=height, width=width, method=method, mode="L" if channels == 1 else "RGB")
        usage = "photo.jpg (or samples.npy)"
        if known.get("kdexport.task") == "embedding":
            usage = "one.jpg another.jpg (or samples.npy)"
    elif prepare.get("tokenizer"):
        own = prepare.get("tokenizer_file")
        reading, usage = TOKENIZED.format(file=own) if own else SENTENCES, '"a sentence" (or ids.npy mask.npy)'
        if known.get("kdexport.task") == "embedding":
            usage = '"a sentence" "another" (or ids.npy mask.npy)'
    elif "kdexport.features" in known and len(graph.input) == 1:
        reading, usage = TABLE, "rows.csv (or samples.npy)"
    ranked = next((name for name in ("top_labels", "top_indices") if name in outputs), None)
    scores = next(iter(outputs.values()))
    shown = RANKED.format(names=ranked) if ranked else BEST if len(scores.shape.dim) == 2 else SHAPES
    shown = {"regression": NUMBERS, "embedding": COSINES, "segmentation": MASKS}.get(
        known.get("kdexport.task", ""), shown
    )
    shown += VERIFIED if "kdexport.threshold" in known else ""
    head = HEAD.format(file=model.name, usage=usage.replace('"', "'"))
    if not reading:
        load = "arrays = [np.load(name) for name in given or sys.exit(__doc__)]"
        one_each = f"# One for each input, its first axis samples\n{load}\n"
        head = head[: head.index("if all(name.")] + one_each
    prepared = NORMALIZED if prepare.get("kind") == "image" and not raw else ""
    if prepare.get("kind") == "features" and known.get("kdexport.baked") != "true":
        prepared = STANDARDIZED
    return head + reading + prepared + RUN + shown


def _is_ours(path: Path) -> bool:
    """Whether a file is as this module wrote it, to the letter."""
    try:
        text, signature, digest = path.read_text(encoding="utf-8").rpartition(SIGNATURE)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(signature) and digest.strip() == _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
