"""What a client may keep the page's server waiting for, and how many may: connections, and reading from one of them."""

import socket
import ssl
import threading
import time
from collections import Counter
from http.server import ThreadingHTTPServer
from typing import Any

IDLE_SECONDS = 30.0  # a connection that says nothing is closed
HEAD_SECONDS = 15.0  # for a request's first lines, all of them together, and for TLS to begin
MOST_CONNECTIONS = 96  # at once
MOST_OF_ONE = 24  # of one address: a browser opens six
BLOCK = 1 << 20
TLS_RECORD = b"\x16"
PLAIN = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
PLAIN_TEXT = b"This is https: put https:// before the address.\n"


class LimitedServer(ThreadingHTTPServer):
    """A server with a thread for each connection, of which there are only so many, and TLS where ``tls`` says so."""

    daemon_threads = True
    request_queue_size = 64
    tls: ssl.SSLContext | None = None

    def __init__(self, *arguments: Any) -> None:
        self._lock = threading.Lock()
        self._connections: Counter[str] = Counter()
        super().__init__(*arguments)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Turn away whoever holds too many connections: each costs a thread."""
        address = str(client_address[0])
        with self._lock:
            if self._connections.total() >= MOST_CONNECTIONS or self._connections[address] >= MOST_OF_ONE:
                return False
            self._connections[address] += 1
            return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and count it no more once it has ended."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections[str(client_address[0])] -= 1
                self._connections += Counter()  # drops those that have none

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Begin TLS in the connection's own thread: who is slow at it holds up nobody else."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(HEAD_SECONDS)
        if request.recv(1, socket.MSG_PEEK) != TLS_RECORD:
            request.sendall(PLAIN + PLAIN_TEXT)
            request.recv(BLOCK)  # else what it has sent, unread, would take the answer away
            return
        with self.tls.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that hung up: what drives it knows."""


class TooSlowError(OSError):
    """A client took longer for what it had to say than it may."""


class TimedReader:
    """Reads a connection with one deadline for all of a request, where a socket's own timeout is per packet."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._deadline: float | None = None
        self.idle()

    def idle(self) -> None:
        """Wait for a next request as long as a connection may say nothing."""
        self._deadline = None
        self._connection.settimeout(IDLE_SECONDS)

    def within(self, seconds: float) -> None:
        """From now on all that is read must come within some seconds."""
        self._deadline = time.monotonic() + seconds

    def readline(self, limit: int = -1) -> bytes:
        """Return a line, its newline included; the deadline starts with its first byte."""
        line = bytearray()
        while not line.endswith(b"\n") and (limit < 0 or len(line) < limit):
            self._check()
            byte = self._stream.read(1)  # of a buffer: headers are short
            if not byte:
                break
            if self._deadline is None:
                self.within(HEAD_SECONDS)
            line += byte
        return bytes(line)

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer where the client has hung up."""
        content = bytearray()
        while len(content) < size:
            self._check()
            block = self._stream.read1(min(BLOCK, size - len(content)))
            if not block:
                break
            content += block
        return bytes(content)

    def close(self) -> None:
        """End reading."""
        self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return bool(self._stream.closed)

    def _check(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TooSlowError("too slow")
            self._connection.settimeout(left)
