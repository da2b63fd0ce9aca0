"""The pages of the people who compare answers, as a web application: `create_app` around a store.

The page asks for a task and gets a prompt with a left and a right answer; which model wrote which never leaves the
server. It answers with "left" or "right", which is mapped back here. Everything it loads comes from this package.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from rlhfkit.errors import DataError, MissingDependencyError, StoreError
from rlhfkit.feedback.guard import Guard, Refusal, is_local_request
from rlhfkit.feedback.store import Store, Task
from rlhfkit.feedback.votes import FLAGS, LARGEST_STRENGTH, SKIP_REASONS, Choice, Flag, Pair, Side, SkipReason, Vote
from rlhfkit.records import Conversation

try:
    import jinja2
    from fastapi import APIRouter, Depends, FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, RedirectResponse
    from fastapi.staticfiles import StaticFiles
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
except ImportError as _missing:
    raise MissingDependencyError(
        f"the labelling page needs a package that is missing ({_missing.name}); pip install 'rlhfkit[web]'"
    ) from _missing

__all__ = ["LANGUAGES", "Link", "Person", "create_app", "name_of", "render_page", "signed_in"]

HERE = Path(__file__).parent
LANGUAGES = {"en": "English", "zh": "中文"}
LONGEST_NAME = 60
LONGEST_COMMENT = 4000
LONGEST_STAY_SECONDS = 7 * 24 * 3600.0
GRACE_SECONDS = 10.0
"""So long a pair waits for somebody who left the page, because a reload looks like leaving."""
REMEMBERED_SECONDS = 10.0
"""So long it is remembered whose token it is, and which guidelines hold, before the store is asked again."""
MOST_REMEMBERED = 10_000
COOKIE_SECONDS = 180 * 24 * 3600

_log = logging.getLogger(__name__)


class _Nobody:
    """In the place of a store, where there is none: nobody is known."""

    def annotator_of(self, token: str) -> str | None:
        return None


@dataclass(frozen=True, slots=True)
class Link:
    """A page in the navigation."""

    path: str
    text: str
    """Its words' name in texts.json."""
    is_for: Callable[[Request], bool] = lambda request: True
    """Whether somebody sees it in the navigation; the page itself has to look again."""


@dataclass(slots=True)
class Site:
    """What all routes share."""

    store: Store
    title: str
    project: str
    allow_names: bool
    links: Sequence[Link]
    departures: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Person → the pair that they left, one at most, and when it shall go back to the others."""
    people: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Token → name, and until when it is remembered."""
    shown: dict[tuple[str, str], Side] = field(default_factory=dict)
    """(person, pair) → which response they see left; the store knows it for those that are not here."""
    guidelines_version: tuple[int, float] = (0, 0.0)
    """The newest, and until when it is remembered."""

    def side(self, person: str, pair_id: str) -> Side | None:
        """Which response stands left for this person; None where they never had the pair."""
        return self.shown.get((person, pair_id)) or self.store.shown_left(person, pair_id)

    def remember_side(self, person: str, pair_id: str, side: Side) -> None:
        """Keep what a person sees until their vote comes."""
        if len(self.shown) > MOST_REMEMBERED:
            self.shown.clear()
        self.shown[person, pair_id] = side

    def guidelines(self) -> tuple[int, str]:
        """The newest version and its text."""
        version, text = self.store.guidelines()
        self.guidelines_version = version, time.monotonic() + REMEMBERED_SECONDS
        return version, text

    def newest_guidelines_version(self) -> int:
        """The newest version, or the one of a moment ago."""
        version, until = self.guidelines_version
        return version if until > time.monotonic() else self.guidelines()[0]


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
        app.include_router(_router)
    else:
        app.state.site = Site(cast(Store, _Nobody()), title, digest, False, links)
        app.add_api_route("/", lambda: RedirectResponse(links[0].path, 303))
    for router in routers:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    names = tuple(name.lower() for name in hosts)
    app.add_middleware(Guard, hosts=names, refuse=lambda scope, refusal: _told(Request(scope), refusal))
    return app


# ── words and answers ────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _texts() -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = json.loads((HERE / "static" / "texts.json").read_text(encoding="utf-8"))
    return {code: {**words, "language_tag": "zh-Hans" if code == "zh" else code} for code, words in texts.items()}


def language_of(request: Request) -> str:
    """The language that the page asks for, that the browser remembers, or that it prefers; English otherwise."""
    asked = [request.headers.get("x-language", ""), request.cookies.get("rlhfkit_language", "")]
    preferred = [part.split(";")[0].strip()[:2] for part in request.headers.get("accept-language", "").split(",")]
    return next((code for code in (*asked, *preferred) if code in LANGUAGES), "en")


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(request: Request, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    """A page made from a template beside ours, with `text` (the words), `language`, `links` and the project's title."""
    site: Site = request.app.state.site
    language = language_of(request)
    page = _templates().get_template(template)
    html = page.render(
        text=_texts()[language],
        language=language,
        languages=LANGUAGES,
        project_title=site.title,
        links=[link for link in site.links if link.is_for(request)],
        path=request.url.path,
        status=status,
        **values,
    )
    return HTMLResponse(html.encode("utf-8", "replace"), status)


def _json(content: object, status: int = 200) -> Response:
    try:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # text of models may hold half a character, for which UTF-8 has no bytes
        body = json.dumps(content, allow_nan=False).encode()
    return Response(body, status, media_type="application/json")


def _told(request: Request, refusal: Refusal) -> Response:
    """A refusal in the reader's language: JSON for the page, a small page for a person."""
    message = _texts()[language_of(request)][f"error_{refusal.code}"]
    for name, value in refusal.values.items():
        message = message.replace(f"{{{name}}}", str(value))
    if request.url.path.startswith("/api/") or request.method != "GET" or "app" not in request.scope:
        return _json({"error": {"code": refusal.code, "message": message}}, refusal.status)
    return render_page(request, "error.html.jinja", status=refusal.status, message=message)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _told(request, error)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["loc"] == ("body",) or first["type"] == "json_invalid":
        return _told(request, _no_object(request))
    where = ".".join(str(part) for part in first["loc"][1:])
    return _told(request, Refusal(422, "invalid", detail=f"{where}: {first['msg']}" if where else first["msg"]))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the framework's word for a body that could not even be read
        return _told(request, _no_object(request))
    codes = {404: "not_found", 405: "not_allowed"}
    code = codes.get(error.status_code, "invalid")
    return _told(request, Refusal(error.status_code, code, detail=error.detail))


def _no_object(request: Request) -> Refusal:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Refusal(422 if kind == "application/json" else 415, "not_json")


def _conflict(request: Request, error: Exception) -> Response:
    return _told(request, Refusal(409, "conflict", detail=error))


def _busy(request: Request, error: Exception) -> Response:
    _log.error("%s", error)
    return _told(request, Refusal(503, "busy"))


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Response]] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    HTTPException: _http,
    DataError: _conflict,
    StoreError: _busy,
}


# ── who asks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cookie_name(request: Request) -> str:
    # Cookies do not know ports: two projects on one machine must not sign each other out.
    return f"rlhfkit_token_{request.url.port or 80}"


def name_of(request: Request) -> str | None:
    """Name of the person who asks; None where nobody is signed in."""
    token = request.cookies.get(_cookie_name(request), "")
    site: Site = request.app.state.site
    return site.store.annotator_of(token) if token else None


async def signed_in(request: Request) -> str:
    """Name of the person who asks. Raises: Refusal where nobody is signed in."""
    site: Site = request.app.state.site
    token = request.cookies.get(_cookie_name(request), "")
    name, until = site.people.get(token, ("", 0.0))
    if until > time.monotonic():
        return name
    found = await run_in_threadpool(name_of, request)
    if found is None:
        raise Refusal(401, "sign_in")
    if len(site.people) > MOST_REMEMBERED:
        site.people.clear()
    site.people[token] = found, time.monotonic() + REMEMBERED_SECONDS
    return found


Person = Annotated[str, Depends(signed_in)]


async def _the_site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


TheSite = Annotated[Site, Depends(_the_site)]


def _keep_token(request: Request, response: Response, token: str) -> None:
    response.set_cookie(
        _cookie_name(request),
        token,
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


# ── what the page sends ──────────────────────────────────────────────────────────────────────────────────────────────


def _usable(text: str) -> str:
    """Text that every database can hold: without half characters and zero bytes."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "")


Id = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{8,64}$")]
PairId = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Body(BaseModel):
    """The body of a request: nothing but what is named."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Empty(Body):
    """A request that says all by its address."""


class NameBody(Body):
    """A person at this machine says who it is."""

    name: Annotated[str, StringConstraints(max_length=1000)]


class PairBody(Body):
    """Something about one pair."""

    pair_id: PairId


class UndoBody(Body):
    """The last answer shall be taken back."""

    id: Id


class VoteBody(Body):
    """An answer, in the words of the page: left and right."""

    id: Id
    pair_id: PairId
    choice: Literal["preference", "tie", "both_bad", "skip"]
    side: Literal["left", "right"] | None = None
    degree: Annotated[int, Field(ge=1, le=LARGEST_STRENGTH)] | None = None
    skip_reason: SkipReason | None = None
    flags_left: Annotated[list[Flag], Field(max_length=len(FLAGS))] = []
    flags_right: Annotated[list[Flag], Field(max_length=len(FLAGS))] = []
    comment: Annotated[str, StringConstraints(max_length=LONGEST_COMMENT)] = ""
    active_seconds: Seconds
    wall_seconds: Seconds
    guidelines_version: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    language: Literal["en", "zh"] = "en"


def _choice(body: VoteBody, shown_left: Side) -> Choice:
    """The choice in the words of the store. Raises: Refusal where its parts contradict each other."""
    is_preference = body.choice == "preference"
    if is_preference != (body.side is not None) or is_preference != (body.degree is not None):
        raise Refusal(422, "invalid", detail="side, degree: for a preference, and only for one")
    for_a = (body.side == "left") == (shown_left == "a")
    strength = (body.degree or 0) * (1 if for_a else -1)
    try:
        return Choice(body.choice, strength, body.skip_reason)
    except ValueError as error:
        raise Refusal(422, "invalid", detail=error) from error


def _vote(body: VoteBody, person: str, shown_left: Side) -> Vote:
    left = tuple(flag for flag in FLAGS if flag in body.flags_left)
    right = tuple(flag for flag in FLAGS if flag in body.flags_right)
    wall = min(body.wall_seconds, LONGEST_STAY_SECONDS)
    return Vote(
        id=body.id,
        pair_id=body.pair_id,
        annotator=person,
        choice=_choice(body, shown_left),
        shown_left=shown_left,
        active_seconds=min(body.active_seconds, wall),
        wall_seconds=wall,
        flags_a=left if shown_left == "a" else right,
        flags_b=right if shown_left == "a" else left,
        comment=_usable(body.comment),
        guidelines_version=body.guidelines_version,
        language=body.language,
    )


# ── what the page gets ───────────────────────────────────────────────────────────────────────────────────────────────


def _content(text: str | Conversation) -> str | list[dict[str, str]]:
    return text if isinstance(text, str) else [{"role": turn.role, "content": turn.content} for turn in text]


def _sides(pair: Pair, shown_left: Side) -> tuple[str | Conversation, str | Conversation]:
    both = (pair.response_a, pair.response_b)
    return both if shown_left == "a" else both[::-1]


def _leased(site: Site, person: str) -> dict[str, Any]:
    """What comes next for a person."""
    _let_go(site, staying=person)
    return _next(site, person, site.store.lease(person))


def _next(site: Site, person: str, task: Task | None) -> dict[str, Any]:
    """A task, or none, and how far the person is."""
    progress, shown = site.store.progress(person), None
    if task is not None:
        site.remember_side(person, task.pair.id, task.shown_left)
        left, right = _sides(task.pair, task.shown_left)
        shown = {
            "pair_id": task.pair.id,
            "prompt": _content(task.pair.prompt),
            "left": _content(left),
            "right": _content(right),
            "lease_seconds": round(max(0.0, task.lease_until - time.time()), 1),
        }
    return {
        "task": shown,
        "progress": asdict(progress),
        "guidelines_version": site.newest_guidelines_version(),
    }


def _taken_back(vote: Vote) -> dict[str, Any]:
    """A vote in the words of the page."""
    is_a_left = vote.shown_left == "a"
    preferred = vote.choice.preferred
    return {
        "pair_id": vote.pair_id,
        "choice": vote.choice.kind,
        "side": None if preferred is None else "left" if (preferred == "a") == is_a_left else "right",
        "degree": abs(vote.choice.strength) or None,
        "skip_reason": vote.choice.skip_reason,
        "flags_left": vote.flags_a if is_a_left else vote.flags_b,
        "flags_right": vote.flags_b if is_a_left else vote.flags_a,
        "comment": vote.comment,
    }


def _let_go(site: Site, *, staying: str) -> None:
    """Release what people left long enough ago; who asks now has only reloaded the page."""
    now = time.monotonic()
    for person, (pair_id, due) in list(site.departures.items()):
        if person == staying or due <= now:
            site.departures.pop(person, None)
            if person != staying:
                site.store.release(person, pair_id)


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_router = APIRouter()


@_router.get("/")
def label_page(request: Request, site: TheSite, token: str | None = None) -> Response:
    """The labelling page; with a token, a cookie first, so that the token leaves the address."""
    problem = None
    if token is not None:
        if site.store.annotator_of(token) is not None:
            response = RedirectResponse("/", 303)
            _keep_token(request, response, token)
            return response
        problem = "bad_token"
    return render_page(
        request, "label.html.jinja", status=401 if problem else 200, problem=problem, skip_reasons=SKIP_REASONS
    )


@_router.get("/api/session")
def session(request: Request, site: TheSite) -> Response:
    """Who is signed in."""
    may_give_name = site.allow_names and is_local_request(request.scope)
    return _json({"name": name_of(request), "project": site.project, "may_give_name": may_give_name})


@_router.post("/api/session")
def sign_in(body: NameBody, request: Request, site: TheSite) -> Response:
    """A person at this machine starts with a name."""
    if not (site.allow_names and is_local_request(request.scope)):
        raise Refusal(403, "names_closed")
    name = " ".join(_usable(body.name).split())
    if not name.isprintable() or not 1 <= len(name) <= LONGEST_NAME:
        raise Refusal(422, "bad_name", limit=LONGEST_NAME)
    response = _json({"name": name})
    _keep_token(request, response, site.store.add_annotator(name))
    return response


@_router.post("/api/sign-out")
def sign_out(body: Empty, request: Request) -> Response:
    """The browser forgets the person."""
    response = _json({})
    response.delete_cookie(_cookie_name(request), httponly=True, samesite="strict")
    return response


@_router.post("/api/task")
def task(body: Empty, person: Person, site: TheSite) -> Response:
    """The pair that the person holds, or the next one."""
    return _json(_leased(site, person))


@_router.post("/api/vote")
def vote(body: VoteBody, person: Person, site: TheSite) -> Response:
    """Take an answer, once however often it is sent; the next pair comes with the reply."""
    shown_left = site.side(person, body.pair_id)
    if shown_left is None:
        raise Refusal(404, "unknown_pair")
    _let_go(site, staying=person)
    outcome, task = site.store.vote_and_lease(_vote(body, person, shown_left))
    site.shown.pop((person, body.pair_id), None)  # not before: where the store cannot be reached, the vote comes again
    return _json({"outcome": outcome, **_next(site, person, task)})


@_router.post("/api/undo")
def undo(body: UndoBody, person: Person, site: TheSite) -> Response:
    """Take back the person's last answer; its pair comes with the reply."""
    taken = site.store.undo(person, id=body.id)
    return _json({"taken_back": None if taken is None else _taken_back(taken), **_leased(site, person)})


@_router.post("/api/heartbeat")
def heartbeat(body: PairBody, person: Person, site: TheSite) -> Response:
    """The person is still reading."""
    site.departures.pop(person, None)
    return _json({"held": site.store.extend(person, body.pair_id)})


@_router.post("/api/release")
def release(body: PairBody, person: Person, site: TheSite) -> Response:
    """The person leaves the page; after a moment the pair goes back to the others."""
    if len(site.departures) < MOST_REMEMBERED:
        site.departures[person] = body.pair_id, time.monotonic() + GRACE_SECONDS
    return _json({})


@_router.get("/api/progress")
def progress(person: Person, site: TheSite) -> Response:
    """How far the person is."""
    return _json(asdict(site.store.progress(person)))


@_router.get("/api/guidelines")
def guidelines(person: Person, site: TheSite) -> Response:
    """The project's guidelines."""
    version, text = site.guidelines()
    return _json({"version": version, "text": text})
