"""One offline HTML page of a study of settings, from its `study.json` alone; the text of settings stays text."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlhfkit.errors import CheckpointError
from rlhfkit.report.knobs import value_text
from rlhfkit.report.study_plots import (
    finalist_chart,
    front_chart,
    importance_chart,
    knob_chart,
    rung_chart,
    seconds_chart,
    test_chart,
)
from rlhfkit.report.study_words import fixed, signed, words_of
from rlhfkit.report.svg import WIDE, Chart
from rlhfkit.report.templates import templates
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.studies import best_trial, read_study
from rlhfkit.rundir.study import StudyDir, StudyResults
from rlhfkit.wording import duration, number, percent

__all__ = ["render_study", "write_study_page"]

NARROW = 320
"""Width of a drawing that a phone shows whole."""


def write_study_page(study: StudyDir) -> Path:
    """Path of `study.html`, written anew from `study.json`; what is not known yet is left out.

    The same results give the same bytes. Raises: CheckpointError where there are no results, or they are damaged.
    """
    results = read_study(study)
    if results is None:
        raise CheckpointError(
            f"{study.path} has no {study.results.name}, which a study writes when it begins; start it again with the "
            "same rlhfkit tune command"
        )
    write_atomically(study.page, render_study(results).encode("utf-8", "backslashreplace"))
    return study.page


def render_study(study: StudyResults) -> str:
    """The page as text; see `write_study_page`."""
    environment = templates()
    environment.filters.update(number=number, percent=percent, fixed=fixed, signed=signed, shown=value_text)
    environment.filters.update(duration=partial(duration, digits=2))
    template = environment.get_template("study.html.jinja")
    return template.render(study=study, page=words_of(study), charts=charts_of(study))


@dataclass(frozen=True, slots=True)
class StudyCharts:
    """What the page shows; None where there is nothing to draw yet."""

    test: Chart | None
    front: Chart | None
    front_on_a_phone: Chart | None
    knobs: Chart | None
    importance: Chart | None
    rungs: Chart | None
    finalists: Chart | None
    seconds: Chart | None


def charts_of(study: StudyResults) -> StudyCharts:
    """What there is to draw of a study so far."""
    best = best_trial(study)
    leader = None if best is None else best.number
    return StudyCharts(
        test=test_chart(study.comparison, study.metric) if study.comparison and study.comparison.seeds else None,
        front=front_chart(study, leader, width=WIDE),
        front_on_a_phone=front_chart(study, leader, width=NARROW),
        knobs=knob_chart(study, leader),
        importance=importance_chart(study),
        rungs=rung_chart(study, leader),
        finalists=finalist_chart(study.finalists, leader, study.metric) if study.finalists else None,
        seconds=seconds_chart(study),
    )
