"""Sockets at one address of this machine; torch's store by itself listens at all of them."""

import socket

__all__ = ["free_port", "listening_at"]

MOST_WAITING = 128


def free_port(address: str = "") -> int:
    """A port that nobody uses at this address now; without one, at any of this machine."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def listening_at(address: str, port: int) -> int | None:
    """A socket that listens there alone, by its number; None where the address is not this machine's, or is taken."""
    try:
        kind, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(kind, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
        opened.listen(MOST_WAITING)
    except OSError:
        opened.close()
        return None
    return opened.detach()
