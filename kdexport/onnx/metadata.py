"""What a file says of itself: the ``kdexport.*`` entries of its metadata, what its graph shows, and its example.

``infer.py`` is a complete example beside the file, with numpy and onnxruntime; Pillow or transformers read raw inputs.
It holds what its file needs and nothing else, so that it can be read before it is run. It is the user's to change: one
that was changed, or was there before, is not replaced unasked.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from kdexport import __version__, artifacts, results
from kdexport.onnx import files

if TYPE_CHECKING:
    from kdexport.models.preprocessing import Preprocessing

PREFIX = "kdexport."


def entries(
    *,
    key: str | None,
    precision: str,
    opset: int,
    labels: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
    task: str | None = None,
    preprocessing: "Preprocessing | None" = None,
    baked: bool = False,
    recipe: str | None = None,
    parameters: int | None = None,
    macs: int | None = None,
    license: str | None = None,
    val_score: float | None = None,
) -> dict[str, str]:
    """Return the metadata of a file; what is not known is left out.

    Args:
        key: Stands for all that the file was made from: the same key, the same file.
        precision: ``fp32``, ``fp16``, ``int8``, ``int8-dynamic``.
        opset: ONNX operator set version.
        labels: Names of the classes or targets, in the order of the outputs.
        task: What the network is for, as the recipe names it.
        features: Names of a table's columns, in the order in which they are fed.
        preprocessing: What turns raw inputs into the network's.
        baked: Whether that is part of the graph already.
        recipe: Hash of the recipe that the network was trained by.
        parameters: Of the network.
        macs: Multiply-accumulates of one sample.
        license: Of the weights.
        val_score: Of the network on the validation split.
    """
    import torch  # here: who only reads files does not wait for it

    known: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "opset": opset,
        "key": key,
        "precision": precision,
        "labels": json.dumps(labels, ensure_ascii=False) if labels else None,
        "task": task,
        "features": json.dumps(features, ensure_ascii=False) if features else None,
        "preprocessing": None if preprocessing is None else json.dumps(preprocessing.to_json()),
        "baked": None if preprocessing is None else json.dumps(baked),
        "recipe": recipe,
        "parameters": parameters,
        "macs": macs,
        "license": license,
        "val_score": val_score,
    }
    return {PREFIX + name: str(value) for name, value in known.items() if value is not None}


def read(path: Path) -> dict[str, str]:
    """Return a file's metadata; empty where it is absent or not ONNX."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # noqa: BLE001 - protobuf's errors differ from version to version
        return {}
    return {item.key: item.value for item in model.metadata_props}


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Replace a file's metadata.

    The shapes that quantizers have noted stay: without them ONNX Runtime 1.31 crashes on some graphs of mixed
    precision.
    """
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def add(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into a file's metadata in place of those of the same names; weights beside the file stay there."""
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {item.key: item.value for item in model.metadata_props} | dict(entries))
    onnx.save(model, path)


def model_file(
    name: str,
    path: Path,
    *,
    shown_as: str,
    precision: str,
    parameters: int | None,
    macs: int | None,
    parity: results.Parity | None,
    operators_before: dict[str, int] | None = None,
    notes: tuple[str, ...] = (),
    quantized: tuple[int, int] | None = None,
) -> results.ModelFile:
    """Return the entry of a finished file, its opset, inputs and operators read off its graph.

    Args:
        name: ``teacher``, ``student.int8``, ...
        path: The file.
        shown_as: Its path in the result.
        precision: Of its weights.
        parameters: Of the network that it was made from.
        macs: Multiply-accumulates of one sample.
        parity: The proof.
        operators_before: Of the graph before it was optimized.
        notes: What the user should know, in words.
        quantized: How many operators with weights are in fewer bits, of how many.
    """
    model = onnx.load(path, load_external_data=False)
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    operators = dict(Counter(node.op_type for node in nodes(model.graph)).most_common())
    return results.ModelFile(
        name=name,
        file=shown_as,
        sha256=artifacts.sha256(path),
        precision=precision,
        size_bytes=files.size_bytes(path),
        parameters=parameters,
        macs=macs,
        opset=opset,
        inputs={item.name: _shape(item) for item in model.graph.input},
        operators=operators,
        operators_before=operators_before or {},
        oldest_runtime=files.oldest_runtime(opset, model.ir_version, operators),
        parity=parity,
        notes=notes,
        quantized=quantized,
    )


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a graph, those of its subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def _shape(item: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or (dim.dim_value if dim.dim_value > 0 else "?") for dim in item.type.tensor_type.shape.dim]


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

    tokenizer = AutoTokenizer.from_pretrained(prepare["tokenizer"].removeprefix("hf:"))
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
    known = read(model)
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
