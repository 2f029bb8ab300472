"""The files of other people that ``fuzz.py`` damages: recipes, weights, networks, data. How each is made, and read."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How a kind of file is made and read."""

    name: str
    suffix: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    form: str = "bytes"  # of ``fuzz_mutations.FIELDS``: what it can be changed in field by field
    whole: Callable[[Path], object] | None = None  # what takes longer, and is done with every 25th alone


# What is read: each takes the file's place, and everything that it writes goes beside it.


def _recipe(path: Path) -> object:
    from kdexport.recipe import Recipe

    return Recipe.load(path)


def _setting(path: Path) -> object:
    from kdexport.recipe import Recipe

    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return Recipe.load(path.parents[1] / "seed" / "recipe.toml", text.split("\n"))


def _weights(path: Path) -> object:
    from torch import nn

    from kdexport.models.weights import load_weights

    return load_weights(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), path)


def _onnx(path: Path) -> object:
    from kdexport.onnx.describe import describe, describe_file, integer_limits

    return describe_file(path), describe(path), integer_limits(path)


def _data(scheme: str, **options: Any) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        from kdexport.data.datasets import load_data
        from kdexport.recipe import Data

        shutil.rmtree(path.parent / "cache", ignore_errors=True)
        given = dict(options)
        if scheme == "csv":
            given["tokenizer"] = str(path.parents[1] / "seed" / "tokenizer" / "tokenizer.json")
        made = load_data(Data(source=f"{scheme}:{path}", **given), 0, path.parent / "cache")
        return made.train.take(slice(0, 2)).inputs

    return read


def _pictures(scheme: str, place: str) -> Callable[[Path], object]:
    """Read a folder of whole pictures among which the file is one."""

    def read(path: Path) -> object:
        folder = path.parents[1] / "seed" / scheme
        shutil.copyfile(path, folder / place)
        return _data(scheme, image_size=(8, 8))(folder)

    return read


def _recipes(folder: Path) -> list[bytes]:
    found = [path.read_bytes() for path in sorted(Path(__file__).parents[1].glob("models/*/recipe.toml"))]
    (folder / "recipe.toml").write_bytes(found[0])
    return found


def _settings(folder: Path) -> list[bytes]:
    _recipes(folder)
    return [
        b'distill.epochs=3\ndistill.terms=[{method="soft_targets",temperature=2.0}]',
        b"data.source=npz:x.npz\nteacher.args={width=3}\nbench.batch_sizes=[1,4]",
        b"terms.0.temperature=2\nrequire.max_drop=0.01\nexport.quantize=[]",
    ]


def _checkpoints(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save
    from torch import nn

    state = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).state_dict()
    made = [save(state)]
    for document, options in (
        ({"state_dict": state, "epoch": 3, "args": {"lr": 0.1}}, {}),
        ({"module." + name: value for name, value in state.items()}, {"_use_new_zipfile_serialization": False}),
        (state, {}),
    ):
        torch.save(document, folder / "seed.pt", **options)
        made.append((folder / "seed.pt").read_bytes())
    return made


def _arrays(folder: Path) -> list[bytes]:
    import numpy as np

    draw, made = np.random.default_rng(0), []
    arrays = {
        "x_train": draw.integers(0, 255, (12, 4, 4, 3), dtype=np.uint8), "y_train": np.arange(12) % 3,
        "x_test": draw.integers(0, 255, (6, 4, 4, 3), dtype=np.uint8), "y_test": np.arange(6) % 3,
    }  # fmt: skip
    for write in (np.savez, np.savez_compressed):
        write(folder / "seed.npz", **arrays)
        made.append((folder / "seed.npz").read_bytes())
    return made


def _texts(folder: Path) -> list[bytes]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(("[UNK]", "[PAD]", "a", "film", "times", "stars"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    rows = "".join(f'"a film, {number} times","{number} ""stars""",{number % 2}\n' for number in range(40))
    return [f"text,more,label\n{rows}".encode(), f"text;more;label\n{rows}".replace('",', '";').encode()]


def _table(folder: Path) -> list[bytes]:  # noqa: ARG001
    return [b"a,b,target\n" + b"".join(b"%d,%.3f,%.2f\n" % (k, k / 7, k * 1.5) for k in range(60))]


def _parquet(folder: Path) -> list[bytes]:
    import pandas

    frame = pandas.DataFrame({"a": range(60), "b": [k / 7 for k in range(60)], "target": [k * 1.5 for k in range(60)]})
    frame.to_parquet(folder / "seed.parquet")
    return [(folder / "seed.parquet").read_bytes()]


def _folders(folder: Path, masks: bool) -> list[bytes]:
    import numpy as np
    from PIL import Image

    draw, made = np.random.default_rng(0), []
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            picture = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            part = ("masks", split, "images") if masks else ("imagefolder", split, "cat" if number % 2 else "dog")
            place = folder.joinpath(*part)
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{number}.png")
            if masks:
                beside = folder / "masks" / split / "masks"
                beside.mkdir(exist_ok=True)
                Image.fromarray(draw.integers(0, 3, (16, 16), dtype=np.uint8)).save(beside / f"{number}.png")
    for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        held = io.BytesIO()
        source = Image.fromarray(draw.integers(0, 3, (16, 16), dtype=np.uint8)) if masks else picture
        source.save(held, form)
        made.append(held.getvalue())
    return made[:1] if masks else made


def _program(path: Path) -> object:
    import torch

    from kdexport.models.networks import check_output
    from kdexport.models.programs import Program
    from kdexport.tasks import TASKS

    check_output(Program(path), (torch.zeros(2, 8),), TASKS["classification"], ("a", "b", "c"), "teacher")
    return None


def _programs(folder: Path) -> list[bytes]:
    import torch
    from torch import nn

    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    made = []
    for shapes in (None, ({0: torch.export.Dim("batch")},)):
        torch.export.save(torch.export.export(network, (torch.zeros(2, 8),), dynamic_shapes=shapes), folder / "x.pt2")
        made.append((folder / "x.pt2").read_bytes())
    return made


def _tokenizer(path: Path) -> object:
    """Read texts by the tokenizer, and cut it to what they use."""
    from kdexport.data.datasets import load_data
    from kdexport.data.text import tokenizer_json
    from kdexport.data.vocabulary import coverage, cut, vocabulary_of
    from kdexport.recipe import Data

    seed = path.parents[1] / "seed"
    shutil.rmtree(path.parent / "cache", ignore_errors=True)
    made = load_data(Data(source=f"csv:{seed / 'rows.csv'}", tokenizer=str(path)), 0, path.parent / "cache")
    text = tokenizer_json(str(path))
    small = cut(text, ["a film of stars", "times"])
    return made, coverage(text, ["a film"]), vocabulary_of(text, small.tokenizer)


def _tokenizers(folder: Path) -> list[bytes]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    (folder / "rows.csv").write_bytes(_texts(folder)[0])
    made = [(folder / "tokenizer" / "tokenizer.json").read_bytes()]
    letters = {
        letter: number
        for number, letter in enumerate(
            ["[UNK]", "[CLS]", "[SEP]", "a", "f", "i", "l", "m", "s", "t", "r", "e", "ti", "mes", "film", "##s"]
        )
    }
    pieces = [
        ("<unk>", 0.0),
        *(
            (letter, -number / 3)
            for number, letter in enumerate(["▁a", "f", "i", "l", "m", "s", "t", "r", "e", "film"])
        ),
    ]
    for model in (
        models.WordPiece(letters, unk_token="[UNK]"),
        models.BPE(letters, [("t", "i")], unk_token="[UNK]"),
        models.Unigram(pieces, unk_id=0),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 2)])
        tokenizer.add_special_tokens(["[PAD]"])
        made.append(tokenizer.to_str().encode())
    return made


def _sentence(path: Path) -> object:
    """Load a folder of transformers' whose small files lie in one JSON object here."""
    import json

    from kdexport.models.hub import label_names, load_embedder

    folder = path.parent / "model"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        documents = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        documents = None
    if not isinstance(documents, dict):
        documents = {"config.json": path.read_bytes().decode("utf-8", "replace")}
    for name in ("config.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json",
                 "config_sentence_transformers.json"):  # fmt: skip
        if name in documents:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            text = documents[name] if isinstance(documents[name], str) else json.dumps(documents[name])
            (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    folder.mkdir(exist_ok=True)
    label_names(str(folder))
    return load_embedder(str(folder), {"pretrained": False})


def _sentences(folder: Path) -> list[bytes]:  # noqa: ARG001
    import json

    config = {
        "model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 16, "id2label": {"0": "a", "1": "b"},
    }  # fmt: skip
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    files = {
        "config.json": json.dumps(config),
        "modules.json": json.dumps(modules),
        "1_Pooling/config.json": json.dumps({"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}),
        "2_Dense/config.json": json.dumps(
            {
                "in_features": 8,
                "out_features": 4,
                "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            }
        ),
        "config_sentence_transformers.json": json.dumps({"prompts": {"query": "q: "}, "default_prompt_name": "query"}),
    }
    return [json.dumps(files).encode()]


def _listed(path: Path) -> object:
    """Read pictures that a list names."""
    folder = path.parents[1] / "seed" / "listed"
    shutil.copyfile(path, folder / "labels.csv")
    return _data("imagefolder", image_size=(8, 8))(folder)


def _lists(folder: Path) -> list[bytes]:
    import numpy as np
    from PIL import Image

    (folder / "listed" / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(18):
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8))
        picture.save(folder / "listed" / "pictures" / f"{number}.png")
    rows = [("train" if number < 12 else "test", f"pictures/{number}.png", number / 3, number) for number in range(18)]
    return [
        ("file_name,x,y,split\n" + "".join(f"{name},{x:.2f},{y},{split}\n" for split, name, x, y in rows)).encode(),
        ("file_name;x\n" + "".join(f"{name};{x:.2f}\n" for _, name, x, _ in rows)).encode(),
    ]


def _classes(path: Path) -> object:
    """Read masks whose classes a list names."""
    folder = path.parents[1] / "seed" / "masks"
    shutil.copyfile(path, folder / "classes.txt")
    return _data("masks", image_size=(8, 8))(folder)


def _class_lists(folder: Path) -> list[bytes]:
    _folders(folder, True)
    return [
        b"sky\nroad\ncar\n",
        b"0 sky\n1 road\n2 car\n",
        b"0 0 0 sky\n1 1 1 road\n2 2 2 car\n",
        b"# a\nvoid\nroad\ncar\n",
    ]


_TABLE: dict[str, Any] = {"label_columns": ("target",)}
KINDS = (
    Kind("recipe", ".toml", _recipes, _recipe),
    Kind("set", ".txt", _settings, _setting),
    Kind("checkpoint", ".pt", lambda folder: _checkpoints(folder)[1:], _weights),
    Kind("archive", ".pt", lambda folder: _checkpoints(folder)[1:2], _weights, "zip"),
    Kind("safetensors", ".safetensors", lambda folder: _checkpoints(folder)[:1], _weights, "safetensors"),
    Kind("program", ".pt2", _programs, _program, "zip"),
    Kind("npz", ".npz", _arrays, _data("npz"), "zip"),
    Kind("csv", ".csv", _texts, _data("csv")),
    Kind("table", ".csv", _table, _data("table", **_TABLE)),
    Kind("parquet", ".parquet", _parquet, _data("table", **_TABLE)),
    Kind("picture", ".png", lambda folder: _folders(folder, False), _pictures("imagefolder", "train/cat/1.png")),
    Kind("mask", ".png", lambda folder: _folders(folder, True), _pictures("masks", "train/masks/1.png")),
    Kind("list", ".csv", _lists, _listed),
    Kind("classes", ".txt", _class_lists, _classes),
    Kind("tokenizer", ".json", _tokenizers, _tokenizer, "json"),
    Kind("sentence", ".json", _sentences, _sentence, "json"),
)
