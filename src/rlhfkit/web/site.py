"""What every page shares: who asks, in which language, and how an answer is written."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

import jinja2
from fastapi import Depends, Request, Response
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Side
from rlhfkit.web.guard import Refusal

__all__ = [
    "HERE",
    "LANGUAGES",
    "MOST_REMEMBERED",
    "Link",
    "Nobody",
    "Person",
    "Site",
    "TheSite",
    "cookie_name",
    "json_response",
    "keep_token",
    "language_of",
    "name_of",
    "refusal_response",
    "render_page",
    "signed_in",
]

HERE = Path(__file__).parent


LANGUAGES = {"en": "English", "zh": "中文"}


REMEMBERED_SECONDS = 10.0
"""So long it is remembered whose token it is, and which guidelines hold, before the store is asked again."""


MOST_REMEMBERED = 10_000


COOKIE_SECONDS = 180 * 24 * 3600


class Nobody:
    """In the place of a store, where there is none: nobody is known."""

    def annotator_of(self, token: str) -> str | None:
        """None: nobody is known."""
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


@cache
def texts() -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = json.loads((HERE / "static" / "texts.json").read_text(encoding="utf-8"))
    return {code: {**words, "language_tag": "zh-Hans" if code == "zh" else code} for code, words in texts.items()}


def language_of(request: Request) -> str:
    """The language that the page asks for, that the browser remembers, or that it prefers; English otherwise."""
    asked = [request.headers.get("x-language", ""), request.cookies.get("rlhfkit_language", "")]
    preferred = [part.split(";")[0].strip()[:2] for part in request.headers.get("accept-language", "").split(",")]
    return next((code for code in (*asked, *preferred) if code in LANGUAGES), "en")


@cache
def templates() -> jinja2.Environment:
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
    page = templates().get_template(template)
    html = page.render(
        text=texts()[language],
        language=language,
        languages=LANGUAGES,
        project_title=site.title,
        links=[link for link in site.links if link.is_for(request)],
        path=request.url.path,
        status=status,
        **values,
    )
    return HTMLResponse(html.encode("utf-8", "replace"), status)


def json_response(content: object, status: int = 200) -> Response:
    """An answer in JSON."""
    try:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # text of models may hold half a character, for which UTF-8 has no bytes
        body = json.dumps(content, allow_nan=False).encode()
    return Response(body, status, media_type="application/json")


def refusal_response(request: Request, refusal: Refusal) -> Response:
    """A refusal in the reader's language: JSON for the page, a small page for a person."""
    message = texts()[language_of(request)][f"error_{refusal.code}"]
    for name, value in refusal.values.items():
        message = message.replace(f"{{{name}}}", str(value))
    if request.url.path.startswith("/api/") or request.method != "GET" or "app" not in request.scope:
        return json_response({"error": {"code": refusal.code, "message": message}}, refusal.status)
    return render_page(request, "error.html.jinja", status=refusal.status, message=message)


def cookie_name(request: Request) -> str:
    """The cookie that holds a person's token."""
    # Cookies do not know ports: two projects on one machine must not sign each other out.
    return f"rlhfkit_token_{request.url.port or 80}"


def name_of(request: Request) -> str | None:
    """Name of the person who asks; None where nobody is signed in."""
    token = request.cookies.get(cookie_name(request), "")
    site: Site = request.app.state.site
    return site.store.annotator_of(token) if token else None


async def signed_in(request: Request) -> str:
    """Name of the person who asks. Raises: Refusal where nobody is signed in."""
    site: Site = request.app.state.site
    token = request.cookies.get(cookie_name(request), "")
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


async def the_site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


TheSite = Annotated[Site, Depends(the_site)]


def keep_token(request: Request, response: Response, token: str) -> None:
    """Have the browser keep the token of the person who signed in."""
    response.set_cookie(
        cookie_name(request),
        token,
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
