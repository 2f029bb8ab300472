"""A web server for one measured page: its own files by name, on this machine alone, behind a secret token.

It looks names up in a dict and never in a folder: there is no path to climb out of. It takes GET alone.
"""

import contextlib
import secrets
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdexport.errors import KDExportError

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
BINARY = "application/octet-stream"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
GUARDS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; script-src 'self' 'wasm-unsafe-eval' blob:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
IDLE_SECONDS = 30.0  # a connection that says nothing is closed
BLOCK = 1 << 20

Content = Path | bytes


class PageServer:
    """Serves the page from a thread of its own until it is closed.

    Args:
        files: Name -> file or bytes; more by ``offer``.
        isolated: Whether the page is cross-origin isolated: it then may have threads and a finer clock.
        port: Where; 0 takes one that is free.

    Raises:
        KDExportError: The port is in use.
    """

    def __init__(self, files: Mapping[str, Content], *, isolated: bool, port: int = 0) -> None:
        self._files = dict(files)
        self._token = secrets.token_urlsafe(24)
        handler = type(
            "Handler", (_Handler,), {"page": self, "headers_sent": {**GUARDS, **(ISOLATED if isolated else {})}}
        )
        try:
            self._server = _Quiet(("127.0.0.1", port), handler)
        except OSError as error:
            raise KDExportError(
                f"port {port} of this machine cannot be had: {error.strerror or error}", hint="give another, or none"
            ) from None
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The page's address, token included."""
        return f"http://{self.host}/{self._token}/"

    def offer(self, name: str, content: Content) -> str:
        """Serve one more file, or another under the same name; returns the name."""
        self._files[name] = content
        return name

    def find(self, path: str) -> tuple[str, Content] | None:
        """Return name and content behind a request's path; None where the token is wrong or no such file is offered."""
        _, _, rest = urlsplit(path).path.partition("/")
        token, _, name = rest.partition("/")
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return None
        name = name or "index.html"
        content = self._files.get(name)
        return None if content is None else (name, content)

    def close(self) -> None:
        """Stop serving."""
        self._open = False
        with contextlib.suppress(OSError):  # one last request wakes it up
            socket.create_connection(("127.0.0.1", self._server.server_port), timeout=1).close()
        self._thread.join(1)
        self._server.server_close()

    def _serve(self) -> None:
        """Sleep until there is a request, again and again: ``serve_forever`` would wake up while a page is timed."""
        while self._open:
            self._server.handle_request()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that hung up: what drives it knows."""


class _Handler(BaseHTTPRequestHandler):
    page: PageServer
    headers_sent: Mapping[str, str]
    timeout = IDLE_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "kdexport"
    sys_version = ""

    def do_GET(self) -> None:
        # A page elsewhere whose name was made to lead here (DNS rebinding) asks for another host.
        found = self.page.find(self.path) if self.headers.get("Host") == self.page.host else None
        if found is None:
            self.send_error(404)
            return
        name, content = found
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self.send_response(200)
        self.send_header("Content-Type", TYPES.get(Path(name).suffix, BINARY))
        self.send_header("Content-Length", str(size))
        for key, value in self.headers_sent.items():
            self.send_header(key, value)
        self.end_headers()
        if isinstance(content, bytes):
            self.wfile.write(content)
            return
        with content.open("rb") as handle:
            while block := handle.read(BLOCK):
                self.wfile.write(block)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer with nothing but the code, and end the connection: what else it holds is not read."""
        self.close_connection = True
        self.send_response(405 if code == 501 else code)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing: the terminal is the user's."""
