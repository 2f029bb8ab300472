"""A web server for measured pages: its own files by name, behind a secret token, to those who know it.

It looks names up in a dict and never in a folder: there is no path to climb out of. It takes GET, and POST where a name
is meant to receive. What a client may keep it waiting for, and how many may, is limited.
"""

import contextlib
import ipaddress
import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdexport.bench.web.connections import BLOCK, IDLE_SECONDS, LimitedServer, TimedReader, TooSlowError
from kdexport.errors import KDExportError

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
BINARY = "application/octet-stream"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
GUARDS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; connect-src 'self' blob:; "
    "script-src 'self' 'wasm-unsafe-eval' blob:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
BODY_SECONDS = 120.0  # for a request's body
MOST_BODY = 2**25  # bytes: a recording of hundreds of rounds has a few MiB
LOCAL = ("127.0.0.1", "localhost", "[::1]")

Content = Path | bytes
Answer = tuple[int, dict[str, Any]]  # status, JSON
Receiver = Callable[[bytes], Answer]


class PageServer:
    """Serves the page from a thread of its own until it is closed.

    Args:
        files: Name -> file or bytes; more by ``offer``.
        isolated: Whether the page is cross-origin isolated: it then may have threads and a finer clock.
        host: The address to listen on. Beyond this machine only where it says so.
        port: Where; 0 takes one that is free.
        receivers: Name -> what takes the body of a POST to it.
        tls: For https.

    Raises:
        KDExportError: The port is in use, or the address is none of this machine's.
    """

    def __init__(
        self,
        files: Mapping[str, Content],
        *,
        isolated: bool,
        host: str = "127.0.0.1",
        port: int = 0,
        receivers: Mapping[str, Receiver] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._files = dict(files)
        self._token = secrets.token_urlsafe(24)
        self._scheme = "https" if tls else "http"
        self.receivers = dict(receivers or {})
        handler = type(
            "Handler", (_Handler,), {"page": self, "headers_sent": {**GUARDS, **(ISOLATED if isolated else {})}}
        )
        family = _family(host, port)
        try:
            self._server = type("Server", (LimitedServer,), {"address_family": family, "tls": tls})(
                (host, port), handler
            )
        except OSError as error:
            what = f"port {port} of this machine" if host in LOCAL else f"{host}, port {port},"
            hint = "give another, or none"
            if not is_port_fault(error):
                hint = "give an address of this machine with --host, or 0.0.0.0 for all of them"
            raise KDExportError(f"{what} cannot be had: {error.strerror or error}", hint=hint) from None
        self.port = self._server.server_port
        self._bound = "[::1]" if host == "::" else "127.0.0.1" if host == "0.0.0.0" else _bracketed(host)
        self.host = f"{self._bound}:{self.port}"
        self._names = {*LOCAL, _bracketed(host), *_own_names()}
        self.last_request = 0.0  # of those who know the token, on the monotonic clock
        self._open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The page's address, token included."""
        return self.url_at(self._bound)

    def url_at(self, host: str) -> str:
        """Return the page's address under another of this machine's names or addresses."""
        return f"{self._scheme}://{_bracketed(host)}:{self.port}/{self._token}/"

    def offer(self, name: str, content: Content) -> str:
        """Serve one more file, or another under the same name; returns the name."""
        self._files[name] = content
        return name

    def name_in(self, path: str) -> str | None:
        """Return what a request's path names behind the token ("" for the page itself); None without the token."""
        _, _, rest = urlsplit(path).path.partition("/")
        token, slash, name = rest.partition("/")
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return None
        self.last_request = time.monotonic()
        return name if slash else None

    def find(self, path: str) -> tuple[str, Content] | None:
        """Return name and content behind a request's path; None where the token is wrong or no such file is offered."""
        name = self.name_in(path)
        if name is None:
            return None
        name = name or "index.html"
        content = self._files.get(name)
        return None if content is None else (name, content)

    def is_root(self, path: str) -> bool:
        """Return whether a path is the token alone, without the slash that people forget."""
        return self.name_in(f"{path}/") == ""

    def is_own(self, host: str | None) -> bool:
        """Return whether a request's Host is this machine: by address, or by a name that nobody else can own.

        A page elsewhere whose name was made to lead here (DNS rebinding) asks for a name of its own.
        """
        try:
            asked = urlsplit(f"//{host or ''}")
            port = asked.port or (443 if self._scheme == "https" else 80)
        except ValueError:
            return False
        return port == self.port and (_bracketed(asked.hostname or "") in self._names or _is_address(asked.hostname))

    def close(self) -> None:
        """Stop serving."""
        self._open = False
        with contextlib.suppress(OSError):  # one last request wakes it up
            socket.create_connection((self._bound.strip("[]"), self.port), timeout=1).close()
        self._thread.join(1)
        self._server.server_close()

    def _serve(self) -> None:
        """Sleep until there is a request, again and again: ``serve_forever`` would wake up while a page is timed."""
        while self._open:
            self._server.handle_request()


def is_port_fault(error: OSError) -> bool:
    """Return whether a socket could not be bound for its port, not for its address."""
    import errno

    return error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EPERM)


def _family(host: str, port: int) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except (OSError, UnicodeError):
        raise KDExportError(
            f"--host {host} is no address",
            hint="give one of this machine's, 0.0.0.0 for all of them, or leave it out",
        ) from None


def _own_names() -> set[str]:
    name = socket.gethostname().lower().partition(".")[0]
    return {name, f"{name}.local"} if name else set()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _is_address(text: str | None) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(text or "")
        return True
    return False


class _Handler(BaseHTTPRequestHandler):
    page: PageServer
    headers_sent: Mapping[str, str]
    timeout = IDLE_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "kdexport"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = TimedReader(self.connection)  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        self.rfile.idle()  # type: ignore[attr-defined]
        try:
            super().handle_one_request()
        except OSError:  # slow, or gone
            self.close_connection = True

    def do_GET(self) -> None:
        self.connection.settimeout(IDLE_SECONDS)
        if not self.page.is_own(self.headers.get("Host")):
            self.send_error(404)
            return
        if self.page.is_root(self.path):
            self._send(308, b"", {"Location": f"{urlsplit(self.path).path}/"})
            return
        found = self.page.find(self.path)
        if found is None:
            self.send_error(404)
            return
        name, content = found
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self._head(200, size, {"Content-Type": TYPES.get(Path(name).suffix, BINARY)})
        if isinstance(content, bytes):
            self.wfile.write(content)
            return
        with content.open("rb") as handle:
            while block := handle.read(BLOCK):
                self.wfile.write(block)

    def do_POST(self) -> None:
        """Hand a body to what receives it; an answer is JSON. Nothing is read before all else is in order."""
        name = self.page.name_in(self.path) if self.page.is_own(self.headers.get("Host")) else None
        receiver = None if name is None else self.page.receivers.get(name)
        if not self.page.receivers:
            self.send_error(405)
            return
        if receiver is None:
            self.send_error(404)
            return
        origin = self.headers.get("Origin")
        if origin is not None and not self.page.is_own(urlsplit(origin).netloc):
            self.send_error(403)
            return
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        length = self.headers.get("Content-Length") or ""
        if kind != "application/json":
            self.send_error(415)
        elif self.headers.get("Transfer-Encoding") or not length.isdecimal() or len(length) > 15:
            self.send_error(411)
        elif int(length) > MOST_BODY:
            self.send_error(413)
        else:
            self.rfile.within(BODY_SECONDS)  # type: ignore[attr-defined]
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                raise TooSlowError("cut off")
            status, answer = receiver(body)
            self.connection.settimeout(IDLE_SECONDS)
            self._send(status, json.dumps(answer).encode(), {"Content-Type": TYPES[".json"]})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, len(content), headers)
        self.wfile.write(content)

    def _head(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        for key, value in {**headers, **self.headers_sent}.items():
            self.send_header(key, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer with nothing but the code, and end the connection: what else it holds is not read."""
        self.close_connection = True
        self.send_response(405 if code == 501 else code)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing: the terminal is the user's."""
