"""Serving the pages: in the foreground until Ctrl-C, or in a thread while something else goes on."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlhfkit.errors import ConfigError, MissingDependencyError, RlhfkitError

__all__ = ["DEFAULT_PORT", "Address", "serve", "serve_while", "serving"]

DEFAULT_PORT = 8571
_PORTS_TO_TRY = 20
_SECONDS_TO_START = 30.0
_SECONDS_TO_FINISH = 3
_SECONDS_BETWEEN = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the pages are."""

    host: str
    port: int
    asked_port: int
    """The port that was asked for; 0 for any."""

    @property
    def url(self) -> str:
        """What to open in a browser at this machine."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}/"

    @property
    def shared_url(self) -> str:
        """What to open at another machine: with this machine's own address where it listens on all of them."""
        if self.host not in ("", "0.0.0.0", "::"):
            return self.url
        return f"http://{_own_address()}:{self.port}/"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "127.0.0.1", "::1")

    def __str__(self) -> str:
        """The address, and which port was taken, if one was."""
        is_other = self.asked_port not in (0, self.port)
        return f"{self.url} (port {self.asked_port} is taken)" if is_other else self.url


def print_address(address: Address) -> None:
    """Say on the terminal where the pages are."""
    print(f"The page is at {address}; Ctrl-C ends it.", file=sys.stderr, flush=True)


def serve(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    on_ready: Callable[[Address], None] = print_address,
) -> None:
    """Serve `app` until Ctrl-C; requests under way are finished first.

    Where `port` is taken, another one is chosen; `on_ready` gets the address as soon as it answers.

    Raises: ConfigError where `host` or `port` cannot be used, MissingDependencyError.
    """
    with serving(app, host=host, port=port) as served:
        try:
            on_ready(served.address)
            while not served.has_stopped.wait(_SECONDS_BETWEEN):
                pass
        except KeyboardInterrupt:
            pass


def serve_while(
    app: Any,
    condition: Callable[[], bool],
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    on_ready: Callable[[Address], None] = print_address,
    seconds_between: float = 0.5,
) -> None:
    """Serve `app` as long as `condition` holds; it is asked every `seconds_between`, in the calling thread.

    Raises: ConfigError where `host` or `port` cannot be used, MissingDependencyError, and what `condition` raises;
    KeyboardInterrupt at Ctrl-C, after the server has stopped.
    """
    with serving(app, host=host, port=port) as served:
        on_ready(served.address)
        while condition() and not served.has_stopped.wait(seconds_between):
            pass


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs in a thread."""

    address: Address
    has_stopped: threading.Event
    """Set at the end of the thread; joining it is not safe from Ctrl-C before Python 3.13."""


@contextmanager
def serving(app: Any, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> Iterator[Served]:
    """`app`, served in a thread of its own while the block runs.

    Raises: ConfigError where `host` or `port` cannot be used, MissingDependencyError.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependencyError(
            f"serving the labelling page needs a package that is missing ({error.name}); pip install 'rlhfkit[web]'"
        ) from error
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,  # addresses may hold a token
        server_header=False,
        proxy_headers=False,  # whoever comes through a proxy is not at this machine
        ws="none",
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
    )
    server = uvicorn.Server(config)
    address = Address(host, listener.getsockname()[1], port)
    has_stopped = threading.Event()

    def run() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            has_stopped.set()

    threading.Thread(target=run, name="labelling page", daemon=True).start()
    try:
        deadline = time.monotonic() + _SECONDS_TO_START
        while not server.started and time.monotonic() < deadline and not has_stopped.wait(0.01):
            pass
        if not server.started:
            raise RlhfkitError(f"the page did not start at {address.url} within {_SECONDS_TO_START:.0f} s; try again")
        yield Served(address, has_stopped)
    finally:
        server.should_exit = True
        has_stopped.wait(_SECONDS_TO_FINISH + 2)
        listener.close()


def _own_address() -> str:
    """The address under which other machines see this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the network card
            return str(asking.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `port`, or at the next free one where it is taken."""
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port = {port}; expected 0 (any free one) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"host = {host!r} is not known ({error}); expected a name or an address of this machine"
        ) from error
    try:
        return _bound(family, address)
    except PermissionError as error:
        raise ConfigError(f"port = {port} needs more rights; choose one above 1023") from error
    except OSError as taken:
        # The next ones in turn, so that an address that people know stays the same when it can.
        for other in (*range(port + 1, min(port + _PORTS_TO_TRY, 65_536)), 0):
            try:
                return _bound(family, (address[0], other, *address[2:]))
            except OSError:
                continue
        raise ConfigError(
            f"host = {host!r} cannot be listened on ({taken}); expected a name or an address of this machine"
        ) from taken


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener
