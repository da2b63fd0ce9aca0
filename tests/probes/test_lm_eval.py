"""Results of lm-eval in the form in which version 0.4.13 gives them, and what is said where it is not there."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from rlhfkit.errors import ConfigError, DataError, MissingDependencyError
from rlhfkit.probes import lm_eval as bridge


def sample(row, **metrics):
    return {
        "doc_id": row,
        "arguments": [(f"Question {row}", " yes"), (f"Question {row}", " no")],
        "filter": "none",
        "metrics": list(metrics),
        **metrics,
    }


FOUND = {
    "samples": {
        "quiz": [sample(0, acc=1.0), sample(1, acc=0.0), sample(2, acc=1.0)],
        "crows": [
            sample(0, likelihood_diff=0.5, pct_stereotype=1.0),
            sample(1, likelihood_diff=2.0, pct_stereotype=0.0),
        ],
    },
    "higher_is_better": {"quiz": {"acc": True}, "crows": {"likelihood_diff": False, "pct_stereotype": False}},
}


@pytest.fixture
def library(monkeypatch):
    """A stand-in that knows two tasks and remembers what it was asked."""
    asked = {}

    class TaskManager:
        def __init__(self, include_path=None):
            asked["include_path"] = include_path

        def match_tasks(self, names):
            return [name for name in names if name in ("quiz", "crows", "odd")]

    def simple_evaluate(**settings):
        asked.update(settings)
        samples = {
            task: FOUND["samples"].get(task, [sample(0, word_perplexity=(1.0, 2))]) for task in settings["tasks"]
        }
        return {**FOUND, "samples": samples}

    for name, content in (
        ("lm_eval", {"simple_evaluate": simple_evaluate, "__spec__": ModuleSpec("lm_eval", None)}),
        ("lm_eval.tasks", {"TaskManager": TaskManager}),
    ):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(asked=asked)


def measured(*tasks, **settings):
    return bridge.measure_tasks("model", tasks, **{"limit": None, "device": "cpu", "dtype": "float32", **settings})


def test_each_metric_is_measured_item_by_item(library, tmp_path):
    quiz, difference, stereotyped = measured(str(tmp_path), "quiz", "crows", limit=3)
    assert (quiz.probe, quiz.name, quiz.values, quiz.better, quiz.unit) == ("quiz", "acc", (1, 0, 1), "more", "share")
    assert quiz.items[1] == "1: Question 1" and quiz.clusters == ("0", "1", "2")
    assert (difference.better, difference.unit) == ("less", "score")
    assert (stereotyped.better, stereotyped.ideal) == ("ideal", 0.5)
    assert library.asked["include_path"] == [str(tmp_path)] and library.asked["limit"] == 3
    assert library.asked["model_args"] == {"pretrained": "model", "dtype": "float32"}


def test_an_unknown_task_is_refused_before_a_model_is_read(library):
    with pytest.raises(ConfigError, match=r"lm-eval knows no task quizz; `lm-eval ls tasks` lists them"):
        measured("quiz", "quizz")
    assert "tasks" not in library.asked


def test_a_task_without_a_number_for_each_item_is_refused(library):
    with pytest.raises(DataError, match="task odd has no number for each item, but word_perplexity; choose another"):
        measured("odd")


def test_without_lm_eval_the_install_line_is_shown(monkeypatch):
    monkeypatch.setattr(bridge, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rlhfkit\[lm-eval\]'"):
        measured("quiz")
