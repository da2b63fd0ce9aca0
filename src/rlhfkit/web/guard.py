"""What every request to the pages passes: right host, from our own page, not too large; and headers on the way out."""

import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

__all__ = ["HEADER", "LARGEST_BODY_BYTES", "Guard", "Refusal", "host_name", "is_local_request"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER = b"x-rlhfkit"
"""Only our page sends it: another site's page cannot without a permission that the server never gives."""
LARGEST_BODY_BYTES = 64 * 1024
_log = logging.getLogger(__name__)
_SAFE_METHODS = ("GET", "HEAD")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_ENCODED_HEADERS = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


class Refusal(Exception):
    """A request that is not answered; `code` names the words in texts.json, `values` fill their gaps."""

    def __init__(self, status: int, code: str, **values: object) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.values = values


@dataclass(frozen=True, slots=True)
class Guard:
    """An ASGI application around another one.

    A name in the Host header that is not ours is refused, because a page on the internet can let its own name point
    to this machine (DNS rebinding); a bare IP address cannot be such a name. A request that changes something must
    come from a page of ours: with our header, and with our address as its Origin where it has one.
    """

    app: App
    hosts: Sequence[str]
    """Names besides localhost under which the server may be called."""
    refuse: Callable[[Scope, Refusal], App]
    """Makes the answer to a refused request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return

        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = list(message.get("headers", ()))
                own = {name.lower() for name, _ in headers}  # a page may have a policy, or a cache, of its own
                ours = [*_ENCODED_HEADERS, (b"cache-control", b"no-store")]
                message = {**message, "headers": headers + [(name, value) for name, value in ours if name not in own]}
            await send(message)

        try:
            self._check(scope)
            received = await _whole_body(scope, receive)
        except Refusal as refusal:
            await self.refuse(scope, refusal)(scope, receive, send_with_headers)
            return
        try:
            await self.app(scope, received, send_with_headers)
        except Exception:
            # The terminal gets the whole story, the other side of the wire only that there is one.
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if has_begun:
                raise
            await self.refuse(scope, Refusal(500, "internal"))(scope, receive, send_with_headers)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # no page of ours opens one
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        host = _header(scope, b"host")
        name = host_name(host)
        if not (_is_address(name) or name == "localhost" or name in self.hosts):
            raise Refusal(421, "bad_host", host=name[:100] or "?")
        if scope["method"] in _SAFE_METHODS:
            return
        origin = _header(scope, b"origin")
        is_foreign = (
            _header(scope, HEADER) != "1"
            or (origin and urlsplit(origin).netloc.lower() != host.lower())
            or _header(scope, b"sec-fetch-site") not in ("", "same-origin")
        )
        if is_foreign:
            raise Refusal(403, "cross_site")


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_local_request(scope: Scope) -> bool:
    """Whether a request comes from this machine, by its name localhost, and through no proxy."""
    client = scope.get("client")
    is_forwarded = any(name in _FORWARDED for name, _ in scope["headers"])
    is_near = client is not None and _is_address(client[0]) and ipaddress.ip_address(client[0]).is_loopback
    return is_near and not is_forwarded and host_name(_header(scope, b"host")) in _LOCAL_NAMES


async def _whole_body(scope: Scope, receive: Receive) -> Receive:
    """A `receive` that gives the whole body at once. Raises: Refusal where it is too large."""
    limit = LARGEST_BODY_BYTES
    length = _header(scope, b"content-length")
    if length and not (length.isascii() and length.isdigit() and int(length) <= limit):
        raise Refusal(413, "too_large", limit=limit // 1024)
    parts: list[bytes] = []
    is_complete = False
    while not is_complete:
        message = await receive()
        if message["type"] == "http.disconnect":
            return receive
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > limit:
            raise Refusal(413, "too_large", limit=limit // 1024)
        is_complete = not message.get("more_body", False)
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    return give


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
