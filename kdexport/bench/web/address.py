"""Under which addresses others reach this machine, and an address as a QR code in a terminal."""

import contextlib
import importlib.util
import ipaddress
import socket
from collections.abc import Sequence

EVERYWHERE = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}
# Of no network (RFC 5737, RFC 3849): no packet is sent, the system only says by which address it would go there.
NOWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
QUIET_ZONE = 2  # light modules around the code
DARK_ON_LIGHT = ("\x1b[30;107m", "\x1b[0m")


def is_loopback(host: str) -> bool:
    """Return whether an address or name reaches this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def addresses(host: str) -> list[str]:
    """Return the addresses to open where a server listens on ``host``: the likeliest first.

    Several where it listens everywhere: networks of containers and VPNs have addresses too; a phone is in one alone.
    """
    if host not in EVERYWHERE:
        return [host]
    families = [EVERYWHERE[host]] if host == "0.0.0.0" else [socket.AF_INET, socket.AF_INET6]
    found = [address for family in families if (address := _route(family))]
    with contextlib.suppress(OSError):
        for entry in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            if entry[0] in families:
                found.append(str(entry[4][0]))
    return [one for one in dict.fromkeys(found) if _reachable(one)] or ["127.0.0.1" if host == "0.0.0.0" else "::1"]


def _route(family: socket.AddressFamily) -> str | None:
    """Return this machine's address on the network that its packets leave by."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((NOWHERE[family], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _reachable(address: str) -> bool:
    """Return whether others may reach an address; one of a link needs a zone, which no browser takes."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def qr_code(text: str, *, color: bool) -> str | None:
    """Return a text as a QR code of half blocks; None where segno is not installed.

    Args:
        text: What it says.
        color: Whether the terminal takes colors: dark on light is then sure, whatever its own are.
    """
    if importlib.util.find_spec("segno") is None:
        return None
    import segno

    matrix = [list(row) for row in segno.make(text, error="l", micro=False).matrix_iter(border=QUIET_ZONE)]
    return half_blocks(matrix, color=color)


def half_blocks(matrix: Sequence[Sequence[int]], *, color: bool) -> str:
    """Return a matrix as text, two rows to a line; 1 is dark: drawn where colors are sure, else left dark."""
    before, after = DARK_ON_LIGHT if color else ("", "")
    rows = [*matrix, [0] * len(matrix[0])] if len(matrix) % 2 else list(matrix)
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        drawn = [(bool(top) == color, bool(bottom) == color) for top, bottom in zip(upper, lower, strict=True)]
        blocks = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
        lines.append(before + "".join(blocks[pair] for pair in drawn) + after)
    return "\n".join(lines)
