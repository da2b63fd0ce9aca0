"""The labelling page: its requests and what they answer."""

import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from rlhfkit.feedback.states import Task
from rlhfkit.feedback.votes import FLAGS, LARGEST_STRENGTH, SKIP_REASONS, Choice, Flag, Pair, Side, SkipReason, Vote
from rlhfkit.records import Conversation
from rlhfkit.web.guard import Refusal, is_local_request
from rlhfkit.web.site import (
    MOST_REMEMBERED,
    Person,
    Site,
    TheSite,
    cookie_name,
    json_response,
    keep_token,
    name_of,
    render_page,
)

__all__ = [
    "router",
    "sign_in",
    "vote",
]

LONGEST_NAME = 60


LONGEST_COMMENT = 4000


LONGEST_STAY_SECONDS = 7 * 24 * 3600.0


GRACE_SECONDS = 10.0
"""So long a pair waits for somebody who left the page, because a reload looks like leaving."""


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


router = APIRouter()


@router.get("/")
def label_page(request: Request, site: TheSite, token: str | None = None) -> Response:
    """The labelling page; with a token, a cookie first, so that the token leaves the address."""
    problem = None
    if token is not None:
        if site.store.annotator_of(token) is not None:
            response = RedirectResponse("/", 303)
            keep_token(request, response, token)
            return response
        problem = "bad_token"
    return render_page(
        request, "label.html.jinja", status=401 if problem else 200, problem=problem, skip_reasons=SKIP_REASONS
    )


@router.get("/api/session")
def session(request: Request, site: TheSite) -> Response:
    """Who is signed in."""
    may_give_name = site.allow_names and is_local_request(request.scope)
    return json_response({"name": name_of(request), "project": site.project, "may_give_name": may_give_name})


@router.post("/api/session")
def sign_in(body: NameBody, request: Request, site: TheSite) -> Response:
    """A person at this machine starts with a name."""
    if not (site.allow_names and is_local_request(request.scope)):
        raise Refusal(403, "names_closed")
    name = " ".join(_usable(body.name).split())
    if not name.isprintable() or not 1 <= len(name) <= LONGEST_NAME:
        raise Refusal(422, "bad_name", limit=LONGEST_NAME)
    response = json_response({"name": name})
    keep_token(request, response, site.store.add_annotator(name))
    return response


@router.post("/api/sign-out")
def sign_out(body: Empty, request: Request) -> Response:
    """The browser forgets the person."""
    response = json_response({})
    response.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
    return response


@router.post("/api/task")
def task(body: Empty, person: Person, site: TheSite) -> Response:
    """The pair that the person holds, or the next one."""
    return json_response(_leased(site, person))


@router.post("/api/vote")
def vote(body: VoteBody, person: Person, site: TheSite) -> Response:
    """Take an answer, once however often it is sent; the next pair comes with the reply."""
    shown_left = site.side(person, body.pair_id)
    if shown_left is None:
        raise Refusal(404, "unknown_pair")
    _let_go(site, staying=person)
    outcome, task = site.store.vote_and_lease(_vote(body, person, shown_left))
    site.shown.pop((person, body.pair_id), None)  # not before: where the store cannot be reached, the vote comes again
    return json_response({"outcome": outcome, **_next(site, person, task)})


@router.post("/api/undo")
def undo(body: UndoBody, person: Person, site: TheSite) -> Response:
    """Take back the person's last answer; its pair comes with the reply."""
    taken = site.store.undo(person, id=body.id)
    return json_response({"taken_back": None if taken is None else _taken_back(taken), **_leased(site, person)})


@router.post("/api/heartbeat")
def heartbeat(body: PairBody, person: Person, site: TheSite) -> Response:
    """The person is still reading."""
    site.departures.pop(person, None)
    return json_response({"held": site.store.extend(person, body.pair_id)})


@router.post("/api/release")
def release(body: PairBody, person: Person, site: TheSite) -> Response:
    """The person leaves the page; after a moment the pair goes back to the others."""
    if len(site.departures) < MOST_REMEMBERED:
        site.departures[person] = body.pair_id, time.monotonic() + GRACE_SECONDS
    return json_response({})


@router.get("/api/progress")
def progress(person: Person, site: TheSite) -> Response:
    """How far the person is."""
    return json_response(asdict(site.store.progress(person)))


@router.get("/api/guidelines")
def guidelines(person: Person, site: TheSite) -> Response:
    """The project's guidelines."""
    version, text = site.guidelines()
    return json_response({"version": version, "text": text})
