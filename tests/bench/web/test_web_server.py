"""The page's server: its own files, on this machine, to whoever knows the token."""

import http.client
import socket
from pathlib import Path

import pytest

from kdexport.bench.web.server import PageServer
from kdexport.errors import KDExportError


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "secret.txt").write_text("secret")
    (folder / "a.wasm").write_bytes(b"\0asm")
    server = PageServer({"index.html": b"<p>", "a.wasm": folder / "a.wasm"}, isolated=True)
    yield server
    server.close()


def asked(server: PageServer, path: str, method: str = "GET", **headers: str):
    host, _, port = server.host.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for key, value in headers.items():
            connection.putheader(key, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def inside(server: PageServer, name: str) -> str:
    return f"/{server.url.split('/', 3)[3]}{name}"


def test_it_serves_its_files_with_their_types_isolated_and_guarded(server: PageServer) -> None:
    status, headers, body = asked(server, inside(server, "a.wasm"))
    assert (status, body, headers["Content-Type"]) == (200, b"\0asm", "application/wasm")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert asked(server, inside(server, ""))[2] == b"<p>"
    assert server.host.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    "name",
    [
        "secret.txt",
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "/etc/passwd",
        "a.wasm/",
        "A.WASM",
        "a.wasm\0",
    ],
)
def test_nothing_else_is_served(server: PageServer, name: str) -> None:
    path = inside(server, name.replace("\0", "%00"))
    assert asked(server, path)[::2] == (404, b"")


@pytest.mark.parametrize("token", ["", "x", "%C3%A9", "a" * 32, ".."])
def test_a_wrong_token_gets_nothing(server: PageServer, token: str) -> None:
    assert asked(server, f"/{token}/a.wasm")[::2] == (404, b"")
    assert asked(server, "/a.wasm")[0] == asked(server, "/")[0] == 404


def test_another_host_gets_nothing(server: PageServer) -> None:
    assert asked(server, inside(server, "a.wasm"), Host="evil.example")[0] == 404
    assert asked(server, inside(server, "a.wasm"), Host=server.host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "X"])
def test_it_takes_get_alone(server: PageServer, method: str) -> None:
    status, _, body = asked(server, inside(server, "a.wasm"), method)
    assert (status, body) == (405, b"")


@pytest.mark.parametrize("raw", [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"\0\xff\r\n\r\n", b"GET\r\n\r\n"])
def test_a_malformed_request_ends_its_connection_and_nothing_else(server: PageServer, raw: bytes) -> None:
    host, _, port = server.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(raw)
        answer = connection.recv(100)
    assert answer == b"" or b"200" not in answer
    assert asked(server, inside(server, "a.wasm"))[0] == 200


def test_two_servers_have_two_tokens_and_a_port_in_use_is_said(server: PageServer) -> None:
    other = PageServer({}, isolated=False)
    try:
        assert other.url.rsplit("/", 2)[1] != server.url.rsplit("/", 2)[1]
        assert len(other.url.rsplit("/", 2)[1]) >= 32
        with pytest.raises(KDExportError, match=r"port \d+ .* cannot be had: Address already in use"):
            PageServer({}, isolated=False, port=int(server.host.partition(":")[2]))
    finally:
        other.close()


def test_a_page_that_is_not_isolated_says_nothing_of_it() -> None:
    server = PageServer({"x": Path(__file__)}, isolated=False)
    try:
        assert "Cross-Origin-Opener-Policy" not in asked(server, inside(server, "x"))[1]
    finally:
        server.close()
