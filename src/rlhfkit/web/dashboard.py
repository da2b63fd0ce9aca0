"""A look inside: studies, runs with live curves, samples, the label queue and agreement, as pages of the application.

It only reads. It is for the project's owner: who sits at the machine that serves it, or signs in under a name that the
owner gave; and while they still have pairs to compare themselves, nothing is shown that follows from others' votes.
"""

import json
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response

from rlhfkit.errors import CheckpointError, DataError, StoreError
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust.compute import trust_report
from rlhfkit.feedback.trust.report import TrustReport
from rlhfkit.rundir.cluster import read_cluster
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.find import Known, find_run, find_runs, find_study
from rlhfkit.rundir.lines import read_object
from rlhfkit.rundir.studies import read_study
from rlhfkit.rundir.study import StudyResults
from rlhfkit.rundir.tail import Mark, new_curves, new_samples, samples_at
from rlhfkit.web.guard import Refusal, is_local_request
from rlhfkit.web.site import Link, language_of, name_of, render_page

__all__ = ["PLOTTED", "dashboard_link", "dashboard_router"]

PLOTTED = (
    *("score/mean", "ref_kl/sequence", "kl_coef", "entropy_coef", "response_tokens/mean", "eos_rate", "ppo/entropy"),
    *("ppo/explained_variance", "ppo/clip_fraction", "ppo/approx_kl", "loss", "accuracy", "validation/loss"),
    *("validation/accuracy", "episode_return/mean", "episode_steps/mean", "evaluation/judge", "evaluation/score"),
    *("evaluation/ref_kl", "evaluation/response_tokens", "evaluation/eos_rate", "evaluation/distinct_2"),
    *("score/disagreement", "constraint/"),
)
"""Metrics that are sent unless all are asked for; what ends in "/" is the beginning of a name."""
REPORT_SECONDS = 5.0
"""So old an agreement report may be; older where it takes long, so that it is at work a twentieth of the time."""
_SHARE_OF_TIME = 20
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""Of a page of a study, which has its style in itself and no script."""
Found = TypeVar("Found")
_TEXTS = Path(__file__).parent / "static" / "dashboard_texts.json"


def dashboard_link(*, owners: Collection[str] = ()) -> Link:
    """The dashboard's entry in the navigation, for those who may see it."""

    def is_for(request: Request) -> bool:
        try:
            return _may_look(request, owners)
        except StoreError:  # the page that says so is drawn with a navigation too
            return False

    return Link("/dashboard", "nav_dashboard", is_for)


def dashboard_router(runs: Path, *, store: Store | None = None, owners: Collection[str] = ()) -> APIRouter:
    """The page at /dashboard and its API, for `create_app(…, routers=[…])`.

    Args:
        runs: The directory below which the runs are, or one run; it may still come into being.
        store: The store whose queue and agreement are shown, open; without it there is only what runs have kept.
        owners: Names of annotators who may look from another machine, with their token.
    """
    view = _View(Path(runs), store)

    def owner(request: Request) -> None:
        if not _may_look(request, owners):
            raise Refusal(403, "owner_only")

    router = APIRouter(dependencies=[Depends(owner)])

    @router.get("/dashboard")
    def page(request: Request) -> Response:
        return render_page(request, "dashboard.html.jinja", words=_words()[language_of(request)])

    @router.get("/api/dashboard/runs")
    def list_runs() -> Response:
        with view.listing:
            found = find_runs(view.runs, known=view.known)
        studies = [asdict(study) for study in found.studies]
        return _json({"runs": [asdict(run) for run in found.runs], "studies": studies, "problem": found.problem})

    @router.get("/dashboard/study")
    def study(id: Id) -> Response:
        return Response(view.study_page(id), media_type="text/html", headers={"content-security-policy": PAGE_POLICY})

    @router.get("/api/dashboard/metrics")
    def metrics(run: Id, offset: Offset = 0, digest: Digest = "", all: bool = False) -> Response:
        read = _readable(lambda: new_curves(view.run(run), Mark(offset, digest), only=None if all else PLOTTED))
        return _json(asdict(read))

    @router.get("/api/dashboard/samples")
    def samples(run: Id, offset: Offset = 0, digest: Digest = "") -> Response:
        return _json(asdict(_readable(lambda: new_samples(view.run(run), Mark(offset, digest)))))

    @router.get("/api/dashboard/sample")
    def sample(run: Id, offset: Offset, stage: Stage, iteration: Offset) -> Response:
        read = _readable(lambda: samples_at(view.run(run), offset, stage=stage, iteration=iteration))
        return _json({"samples": read})

    @router.get("/api/dashboard/trust")
    def trust(request: Request, run: Id) -> Response:
        if view.is_labelling(name_of(request)):
            return _json({"report": None, "is_withheld": True})
        report = _readable(lambda: read_object(view.run(run).trust))
        return _json({"report": report or None, "is_withheld": False})

    @router.get("/api/dashboard/cluster")
    def cluster(run: Id) -> Response:
        read = _readable(lambda: read_cluster(view.run(run)))
        return _json({"table": None if read is None else asdict(read)})

    @router.get("/api/dashboard/labels")
    def labels(request: Request) -> Response:
        return _json(view.labels(name_of(request)))

    return router


Id = Annotated[str, Query(min_length=1, max_length=1000)]
Offset = Annotated[int, Query(ge=0, le=2**53)]
Digest = Annotated[str, Query(max_length=64)]
Stage = Annotated[str, Query(max_length=100)]


@dataclass(slots=True)
class _View:
    """What the routes share."""

    runs: Path
    store: Store | None
    report: TrustReport | None = None
    report_until: float = 0.0
    turn: threading.Lock = field(default_factory=threading.Lock)
    drawn: tuple[StudyResults, bytes] | None = None
    """The study that was drawn last, and its page."""
    drawing: threading.Lock = field(default_factory=threading.Lock)
    known: Known = field(default_factory=dict)
    """What the runs said when they were listed last."""
    listing: threading.Lock = field(default_factory=threading.Lock)

    def run(self, id: str) -> RunDir:
        run = find_run(self.runs, id)
        if run is None:
            raise Refusal(404, "run_gone")
        return run

    def study_page(self, id: str) -> bytes:
        """The page of a study, drawn here from its numbers: a page that lies in its directory could be anybody's."""
        study = find_study(self.runs, id)
        results = None if study is None else _readable(partial(read_study, study))
        if results is None:
            raise Refusal(404, "study_gone")
        from rlhfkit.report.study import render_study  # the drawing library is large, and most look at runs

        with self.drawing:
            if self.drawn is None or self.drawn[0] != results:
                self.drawn = results, render_study(results).encode("utf-8", "backslashreplace")
            return self.drawn[1]

    def is_labelling(self, person: str | None) -> bool:
        """Whether this person has pairs left, and there are others whose votes could sway theirs."""
        if person is None or self.store is None or self.store.annotators() == [person]:
            return False
        return bool(self.store.progress(person).num_left)

    def labels(self, person: str | None) -> dict[str, Any]:
        """The queue, and the agreement report, or why there is none."""
        if self.store is None:
            return {"has_store": False}
        try:
            return self._labels(self.store, person)
        except (StoreError, DataError) as error:
            return {"has_store": True, "problem": str(error)}

    def _labels(self, store: Store, person: str | None) -> dict[str, Any]:
        queue = asdict(store.queue())
        if self.is_labelling(person):
            return {"has_store": True, "queue": queue, "report": None, "is_withheld": True}
        report = self._newest_report(store).as_dict()
        return {"has_store": True, "queue": queue, "report": report, "is_withheld": False}

    def _newest_report(self, store: Store) -> TrustReport:
        """The agreement report of now, or of a moment ago."""
        with self.turn:
            if self.report is None or time.monotonic() > self.report_until:
                begin = time.monotonic()
                settings = store.settings
                self.report = trust_report(
                    store.snapshot(), overlap=settings.overlap, calibration_overlap=settings.calibration_overlap
                )
                end = time.monotonic()
                self.report_until = end + max(REPORT_SECONDS, _SHARE_OF_TIME * (end - begin))
            return self.report


def _may_look(request: Request, owners: Collection[str]) -> bool:
    if is_local_request(request.scope):
        return True
    return bool(owners) and name_of(request) in owners


def _readable(read: Callable[[], Found]) -> Found:
    """What `read` gives. Raises: Refusal with the words for the page where a file is damaged."""
    try:
        return read()
    except CheckpointError as error:
        raise Refusal(422, "run_damaged", detail=error) from error


@cache
def _words() -> dict[str, dict[str, str]]:
    words: dict[str, dict[str, str]] = json.loads(_TEXTS.read_text(encoding="utf-8"))
    return words


def _json(content: object) -> Response:
    # In ASCII, because what models write may hold half a character, for which UTF-8 has no bytes.
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")
