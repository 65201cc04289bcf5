"""Free ports on loopback, and URLs that point at them."""

from __future__ import annotations

import random
import socket
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"

# Below every usual range of ephemeral ports (Linux from 32768, macOS from 49152): a port from that range could be taken
# by any outgoing connection while its server is stopped, and a client that retries against it can connect to itself.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now; another process may still take it before you do.

    Raises OSError when a hundred tries found none.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK}")


def at_port(url: str, *ports: int) -> str:
    """`url` with everything kept but its address, which becomes 127.0.0.1 and the port (a proxy's or a pooler's).

    With several ports there are several addresses.
    """
    parts = urlsplit(url)
    credentials, separator, _ = parts.netloc.rpartition("@")
    places = ",".join(f"{LOOPBACK}:{port}" for port in ports)
    return parts._replace(netloc=f"{credentials}{separator}{places}").geturl()
