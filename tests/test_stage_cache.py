"""A fingerprint changes with what a reference stands for, and with nothing else."""

import json
import os
import shutil

import pytest

from kdexport.recipe import Data
from kdexport.results import ExportResult
from kdexport.stage_cache import (
    as_written,
    cache_key,
    data_fingerprint,
    done,
    fingerprint,
    is_done,
    mark_done,
    result_of,
    weights_fingerprint,
)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "blocks").mkdir(parents=True)
    (folder / "nets.py").write_text(
        "import torch\nfrom helper import width\nfrom blocks import conv\nclass Net: pass\n"
    )
    (folder / "helper.py").write_text("width = 3\n")
    (folder / "blocks" / "__init__.py").write_text("from blocks.conv import *\n")
    (folder / "blocks" / "conv.py").write_text("kernel = 3\n")
    (folder / "unrelated.py").write_text("x = 1\n")
    return folder


def test_a_python_file_counts_with_what_it_imports_from_its_folder(project):
    reference = f"{project / 'nets.py'}:Net"
    first = fingerprint(reference)
    (project / "unrelated.py").write_text("x = 2\n")
    assert fingerprint(reference) == first
    for name in ("helper.py", "blocks/__init__.py", "blocks/conv.py", "nets.py"):
        before = fingerprint(reference)
        with (project / name).open("a") as handle:
            handle.write("# changed\n")
        assert fingerprint(reference) != before, name


def test_a_moved_project_is_the_same_and_arguments_count(project, tmp_path):
    reference = f"{project / 'nets.py'}:Net"
    first = fingerprint(reference, {"depth": 3})
    shutil.copytree(project, tmp_path / "elsewhere")
    assert fingerprint(f"{tmp_path / 'elsewhere' / 'nets.py'}:Net", {"depth": 3}) == first
    assert fingerprint(reference, {"depth": 4}) != first
    assert fingerprint(f"{project / 'nets.py'}:Other", {"depth": 3}) != first


def test_a_file_or_folder_that_an_argument_names_counts(project):
    (project / "clips").mkdir()
    (project / "clips" / "a.wav").write_bytes(b"one")
    reference = f"{project / 'nets.py'}:Net"
    first = fingerprint(reference, {"folder": "clips"})  # relative to the file, as its code sees it
    os.utime(project / "clips" / "a.wav", ns=(5, 5))
    assert fingerprint(reference, {"folder": "clips"}) != first


def test_files_folders_and_names(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"one")
    first = fingerprint(f"npz:{tmp_path / 'd.npz'}")
    os.utime(tmp_path / "d.npz", ns=(5, 5))
    assert fingerprint(f"npz:{tmp_path / 'd.npz'}") == first  # bytes, not times
    (tmp_path / "d.npz").write_bytes(b"two")
    assert fingerprint(f"npz:{tmp_path / 'd.npz'}") != first
    (tmp_path / "m.onnx").write_bytes(b"graph")
    bare = fingerprint(str(tmp_path / "m.onnx"))
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    assert fingerprint(str(tmp_path / "m.onnx")) != bare
    assert fingerprint("torchvision:resnet18") != fingerprint("torchvision:resnet34")
    assert fingerprint("absent.py:Net") == fingerprint("absent.py:Net")  # its absence is said when it is loaded


def test_weights_and_data(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"one")
    assert weights_fingerprint(None) is None
    assert weights_fingerprint("pretrained") == "pretrained"
    assert weights_fingerprint(str(tmp_path / "w.pt")) != weights_fingerprint(str(tmp_path / "absent.pt"))
    first = data_fingerprint(Data(source="digits"))
    assert data_fingerprint(Data(source="digits", fraction=0.5)) != first
    assert data_fingerprint(Data(source="digits", unlabelled=f"imagefolder:{tmp_path}")) != first
    assert data_fingerprint(Data(source="digits")) == first


RESULT = ExportResult("run", ())


def test_a_result_is_done_while_key_and_files_are_what_they_were(tmp_path):
    record, file = tmp_path / "export.json", tmp_path / "net.onnx"
    file.write_bytes(b"weights")
    mark_done(record, "k", RESULT, [file])
    assert done(record, "k", ExportResult) == RESULT
    assert is_done(record, "other") is None
    whole = record.read_text()
    record.write_text(whole[:-20])
    assert done(record, "k", ExportResult) is None
    record.write_text(whole)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (record, file):
        path.rename(moved / path.name)
    assert done(moved / "export.json", "k", ExportResult) == RESULT
    for damage in (b"weighty", b"", None):  # the same length, cut off, gone
        (moved / "net.onnx").write_bytes(damage) if damage is not None else (moved / "net.onnx").unlink()
        assert is_done(moved / "export.json", "k") is None, damage


def test_an_unfinished_or_foreign_record_is_not_done(tmp_path):
    record = tmp_path / "export.json"
    mark_done(record, "", RESULT)
    assert is_done(record, "") is None
    for text in ("", "[]", '{"key": "k"}', '{"key": "k", "files": []}'):
        record.write_text(text)
        assert done(record, "k", ExportResult) is None, text
    record.write_text('{"key": "k", "files": {}, "models": 3}')
    assert done(record, "k", ExportResult) is None


def test_a_record_that_was_changed_is_not_done(tmp_path):
    """One bit makes another figure, and JSON of it all the same."""
    record = tmp_path / "bench.json"
    mark_done(record, "k", {"score": 0.448, "by": {2: "two", 10: "ten"}, "name": "half \ud800"})
    whole = record.read_text()
    assert (is_done(record, "k") or {})["score"] == 0.448
    for change in (
        ("0.448", "0.548"),
        ('"two"', '"twp"'),
        ('"k"', '"j"'),
        ('"seal"', '"sdal"'),
        ('"score"', '"scorf"'),
    ):
        record.write_text(whole.replace(*change))
        changed = is_done(record, "k")
        assert changed is None or result_of(json.loads(whole)).items() <= changed.items(), change
    document = json.loads(whole)
    del document["seal"]  # by an earlier version
    record.write_text(json.dumps(document))
    assert is_done(record, "k") == document


def test_a_key_holds_no_place(project):
    for place in (str(project), f"imagefolder:{project}", f"{project / 'nets.py'}:Net"):
        with pytest.raises(ValueError, match="place of a file"):
            cache_key("bench", data={"source": [place]})
    assert cache_key("bench", a=1, b=2) == cache_key("bench", b=2, a=1) != cache_key("export", a=1, b=2)


def test_words_of_the_users_may_be_a_place(tmp_path):
    written = {"browser": "/usr", "classes": ["/", "."], "args": {"folder": str(tmp_path)}}
    assert cache_key("bench", settings=as_written(written)) != cache_key("bench", settings=as_written({}))
    assert cache_key("bench", data=data_fingerprint(Data(source="builtin:digits", label_columns=("/",))))
