"""Publishing on a hub, against a local stand-in that answers as the real one does."""

import base64
import dataclasses
import importlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from kdexport import artifacts, results
from kdexport.cli import app

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'kdexport[hub]'")
constants = importlib.import_module("huggingface_hub.constants")


class StandIn(BaseHTTPRequestHandler):
    """What the hub answers to the calls that one commit of small files makes."""

    commits: ClassVar[list[dict]]
    paths: ClassVar[list[str]]
    refuse = 0

    def do_POST(self) -> None:
        self.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refuse:
            return self._answer({"error": "not allowed"}, self.refuse)
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            return self._answer({"url": f"{self.address()}/someone/{name}"})
        if "/preupload/" in self.path:
            files = [
                {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                for item in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.commits.append(
                {item["value"]["path"]: item["value"]["content"] for item in lines if item["key"] == "file"}
            )
            url = f"{self.address()}/someone/digits/commit/{'0' * 40}"
            return self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})
        return self._answer({})

    def do_GET(self) -> None:
        self._answer({"siblings": [], "sha": "0" * 40, "id": "someone/digits"})

    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _answer(self, document: dict, status: int = 200) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def stand_in(monkeypatch):
    handler = type("Handler", (StandIn,), {"commits": [], "paths": [], "refuse": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    api = hub.HfApi
    monkeypatch.setattr(hub, "HfApi", lambda: api(endpoint=address, token="hf_made_up"))
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(build, tmp_path: Path) -> Path:
    """Return a run directory whose files are those that were measured."""
    bench = build.bench()
    models = []
    for model in bench.models:
        (tmp_path / model.file).write_bytes(f"the weights of {model.name}".encode())
        models.append(dataclasses.replace(model, sha256=artifacts.sha256(tmp_path / model.file)))
    (tmp_path / "bench.json").write_text(results.dumps(dataclasses.replace(bench, models=tuple(models))))
    (tmp_path / "infer.py").write_text("print('hello')\n")
    return tmp_path


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_files_and_card_go_in_one_commit(run: Path, stand_in) -> None:
    done = invoke(run, "--push-to-hub", "someone/digits")
    assert done.exit_code == 0, done.output
    assert "pushed to http://127.0.0.1" in done.stderr
    (commit,) = stand_in.commits
    assert set(commit) == {"student.onnx", "infer.py", "report.html", "report.json", "README.md"}
    assert base64.b64decode(commit["student.onnx"]) == b"the weights of student"
    assert base64.b64decode(commit["README.md"]).decode() == (run / "card.md").read_text()


def test_a_name_without_an_owner_is_ones_own(run: Path, stand_in) -> None:
    done = invoke(run, "--push-to-hub", "digits")
    assert done.exit_code == 0, done.output
    assert "/api/models/someone/digits/commit/main" in stand_in.paths


def test_what_fails_is_not_pushed(run: Path, stand_in, build) -> None:
    bench = json.loads((run / "bench.json").read_text())
    bench["recipe"]["require"] = {"max_latency_ms": 0.001}
    (run / "bench.json").write_text(json.dumps(bench))
    assert invoke(run, "--push-to-hub", "someone/digits").exit_code == 3
    assert stand_in.commits == []


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "hf auth login"), (403, "may not write there"), (500, "give the same command again")]
)
def test_a_hub_that_refuses(run: Path, stand_in, status: int, hint: str) -> None:
    stand_in.refuse = status
    done = invoke(run, "--push-to-hub", "someone/digits")
    assert done.exit_code == 1, done.output
    assert "someone/digits could not be pushed to" in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.output


def test_another_file_than_the_measured_one(run: Path, stand_in) -> None:
    (run / "student.onnx").write_bytes(b"trained again")
    done = invoke(run, "--push-to-hub", "someone/digits")
    assert done.exit_code == 1
    assert "is not the file that was measured" in done.stderr
    (run / "student.onnx").unlink()
    assert "is not there" in invoke(run, "--push-to-hub", "someone/digits").stderr
    assert stand_in.commits == []


def test_a_name_that_is_none(run: Path, stand_in) -> None:
    done = invoke(run, "--push-to-hub", "a/b/c")
    assert done.exit_code == 1
    assert "a repository is OWNER/NAME" in done.stderr
