"""The pages of the people who compare answers, as a web application: `create_app` around a store.

The page asks for a task and gets a prompt with a left and a right answer; which model wrote which never leaves the
server. It answers with "left" or "right", which is mapped back here. Everything it loads comes from this package.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from rlhfkit.errors import DataError, StoreError
from rlhfkit.feedback.store import Store
from rlhfkit.web.guard import Guard, Refusal
from rlhfkit.web.label_page import router
from rlhfkit.web.site import HERE, Link, Nobody, Site, refusal_response

__all__ = [
    "create_app",
]


_log = logging.getLogger(__name__)


def create_app(
    store: Store | None,
    *,
    title: str = "",
    project: str = "",
    allow_names: bool = True,
    hosts: Sequence[str] = (),
    routers: Sequence[APIRouter] = (),
    links: Sequence[Link] = (),
) -> FastAPI:
    """The web application: the labelling page at /, its API under /api, and `routers` for further pages.

    Args:
        store: The store, open; the caller closes it. Without one there is no labelling page, and / leads to the first
            of `links`.
        title: Name of the project on the page.
        project: Something that is the same whenever the same store is served, as its path, so that what a browser
            keeps for one project never goes to another; `title` by default.
        allow_names: Whether a person at this machine may start by giving a name; all others need a token.
        hosts: Names besides localhost and IP addresses under which the server may be called.
        routers: Further pages, which may use `render_page` and `signed_in`.
        links: Their entries in the navigation.
    """
    app = FastAPI(title="rlhfkit", docs_url=None, redoc_url=None, openapi_url=None)
    digest = hashlib.sha256((project or title).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if store is not None:
        app.state.site = Site(store, title, digest, allow_names, (Link("/", "nav_label"), *links))
        app.include_router(router)
    else:
        app.state.site = Site(cast(Store, Nobody()), title, digest, False, links)
        app.add_api_route("/", lambda: RedirectResponse(links[0].path, 303))
    for further in routers:
        app.include_router(further)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    names = tuple(name.lower() for name in hosts)
    app.add_middleware(Guard, hosts=names, refuse=lambda scope, refusal: refusal_response(Request(scope), refusal))
    return app


# ── words and answers ────────────────────────────────────────────────────────────────────────────────────────────────


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refusal_response(request, error)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["loc"] == ("body",) or first["type"] == "json_invalid":
        return refusal_response(request, _no_object(request))
    where = ".".join(str(part) for part in first["loc"][1:])
    return refusal_response(
        request, Refusal(422, "invalid", detail=f"{where}: {first['msg']}" if where else first["msg"])
    )


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the framework's word for a body that could not even be read
        return refusal_response(request, _no_object(request))
    codes = {404: "not_found", 405: "not_allowed"}
    code = codes.get(error.status_code, "invalid")
    return refusal_response(request, Refusal(error.status_code, code, detail=error.detail))


def _no_object(request: Request) -> Refusal:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Refusal(422 if kind == "application/json" else 415, "not_json")


def _conflict(request: Request, error: Exception) -> Response:
    return refusal_response(request, Refusal(409, "conflict", detail=error))


def _busy(request: Request, error: Exception) -> Response:
    _log.error("%s", error)
    return refusal_response(request, Refusal(503, "busy"))


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Response]] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    HTTPException: _http,
    DataError: _conflict,
    StoreError: _busy,
}
