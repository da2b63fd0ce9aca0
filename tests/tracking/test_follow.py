"""A tracker gets each iteration once, under the names of `metrics.jsonl`, and no secret."""

import json

import pytest

from rlhfkit.errors import ConfigError, MissingDependencyError
from rlhfkit.rundir.directory import RunDir
from rlhfkit.tracking.follow import Follower
from rlhfkit.tracking.process import check_trackers


class Book:
    """A tracker that keeps what it gets."""

    def __init__(self, tracked):
        self.tracked = tracked
        self.known_as = tracked.known_as or "r-1"
        self.place = "a book"
        self.lines = []

    def log(self, place, iteration, values):
        self.lines.append((place, iteration, dict(values)))

    def close(self, ending):
        self.lines.append(ending)


@pytest.fixture
def follow(run):
    """A follower of the run, as each start of it has one, and its book."""

    def start(directory=run):
        books = []
        follower = Follower(directory, "wandb", open_tracker=lambda tracked: books.append(Book(tracked)) or books[-1])
        return follower, books[0]

    return start


def test_numbers_are_sent_under_the_names_of_metrics_jsonl_by_stage_and_seed(follow, write):
    write("sft", 0, 0)
    write("control", 4, 4, labels={"seed": 7})
    follower, book = follow()
    follower.close("finished")
    assert book.lines == [("sft", 0, {"score/mean": 0.5}), ("control/seed-7", 4, {"score/mean": 4.5}), "finished"]


def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker_and_sends_each_iteration_once(follow, write, cut, run):
    write("ppo", 0, 4)
    first, book = follow()
    first.follow()
    assert [line[1] for line in book.lines] == [0, 1, 2, 3, 4]
    cut(2)  # back to a checkpoint
    again, book = follow()
    again.follow()
    write("ppo", 2, 5)
    again.follow()
    assert [line[1] for line in book.lines] == [5]
    assert book.tracked.known_as == "r-1"


def test_what_was_written_while_nobody_was_told_is_sent_later(follow, write):
    follow()[0].follow()
    write("ppo", 0, 2)
    follower, book = follow()
    follower.follow()
    assert [line[1] for line in book.lines] == [0, 1, 2]


def test_a_file_that_is_cut_and_longer_again_between_two_looks_is_read_whole(follow, write, cut):
    write("ppo", 0, 3)
    follower, book = follow()
    follower.follow()
    cut(1)
    write("ppo", 1, 9, offset=0.123456)
    follower.follow()
    assert [line[1] for line in book.lines] == list(range(10))


def test_a_stage_that_begins_anew_is_sent_anew_and_no_other(follow, write):
    write("sft", 0, 1)
    write("ppo", 0, 1)
    follower, book = follow()
    follower.follow()
    assert write("ppo", 0, 1, offset=7.0, forget=True) == ["ppo"]
    follower.follow()  # before it hears of it, when these look as if they were sent
    follower.forget("ppo")
    follower.follow()
    assert book.lines[4:] == [("ppo", 0, {"score/mean": 7.0}), ("ppo", 1, {"score/mean": 8.0})]


def test_no_secret_is_among_what_a_tracker_is_told(follow, run, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "not-for-the-world")
    run.config.write_text(
        json.dumps(
            {
                "tracking": {"name": "run not-for-the-world"},
                "reward": {"url": "http://me:secret-words@host/score?token=abc1&x=1", "headers": ["hf_abcdefghij"]},
                "model": {"path": "models/not-for-the-world", "seed": 3},
            }
        )
    )
    tracked = follow()[1].tracked
    assert tracked.name == "run ${MY_API_KEY}"
    assert tracked.settings["reward"] == {"url": "http://host/score?token=(hidden)&x=1", "headers": ["(hidden)"]}
    assert tracked.settings["model"] == {"path": "models/${MY_API_KEY}", "seed": 3}


def test_a_round_is_named_after_the_run_and_grouped_with_it(follow, run):
    inner = RunDir(run.path / "round-2")
    inner.path.mkdir()
    inner.config.write_text('{"tracking": {"project": "sums"}}')
    tracked = follow(inner)[1].tracked
    assert (tracked.project, tracked.name, tracked.group) == ("sums", "mine-round-2", "mine")


def test_a_tracker_that_is_not_installed_is_refused_at_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr("rlhfkit.tracking.process.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"tracking.to names 'mlflow'.*pip install 'rlhfkit\[mlflow\]'"):
        check_trackers(["mlflow"])


def test_wandb_without_a_key_is_refused_at_the_start_unless_it_is_offline(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"nobody is logged in to api.wandb.ai: run wandb login, or export WANDB_MODE"
    ):
        check_trackers(["wandb"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / "netrc").chmod(0o600)
    check_trackers(["wandb"])
    (tmp_path / "netrc").unlink()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")  # of `wandb offline`
    check_trackers(["wandb"])
    (tmp_path / "wandb" / "settings").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])
