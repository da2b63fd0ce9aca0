"""Who works for a run, without processes: workers are names."""

import pytest

from rlhfkit.launch.crew import LEAVING_SECONDS, Crew


class Town:
    """Where workers come from; they are up when a test says so."""

    def __init__(self):
        self.now, self.ready, self.ended = 0.0, set(), []
        self.crew = Crew(
            start=lambda name, kind: name, is_up=self.ready.__contains__, end=self.ended.append, clock=lambda: self.now
        )

    def all_up(self):
        self.ready.update(self.crew._workers)
        self.crew.look()


@pytest.fixture
def town():
    return Town()


def test_only_those_that_are_up_get_work(town):
    town.crew.have("sampler", 2)
    town.crew.have("reward-worker", 1)
    town.ready.add("sampler-1")
    town.now = 4.0
    town.crew.look()
    assert town.crew.up() == ("sampler-1",)
    assert town.crew.starting("sampler") == {"sampler-0": 4.0}
    assert town.crew.starting("reward-worker") == {"reward-worker-0": 4.0}
    assert (town.crew.number("sampler"), town.crew.number("reward-worker")) == (2, 1)


def test_who_leaves_gets_no_more_work_at_once_and_ends_a_little_later(town):
    town.crew.have("sampler", 2)
    town.all_up()
    town.crew.have("sampler", 1)
    town.crew.look()
    assert town.crew.up() == ("sampler-0",)
    assert town.ended == []
    town.now = LEAVING_SECONDS
    town.crew.look()
    town.crew.look()
    assert town.ended == ["sampler-1"]


def test_who_is_not_up_yet_leaves_first(town):
    town.crew.have("sampler", 3)
    town.ready.update({"sampler-0", "sampler-2"})
    town.crew.look()
    town.crew.have("sampler", 2)
    assert town.crew.up() == ("sampler-0", "sampler-2")
    assert town.crew.starting("sampler") == {}


def test_names_are_never_given_again(town):
    town.crew.have("sampler", 2)
    town.all_up()
    town.crew.have("sampler", 1)
    town.crew.have("sampler", 3)
    town.all_up()
    assert town.crew.up() == ("sampler-0", "sampler-2", "sampler-3")


def test_kinds_do_not_mix(town):
    town.crew.have("sampler", 2)
    town.crew.have("reward-worker", 2)
    town.all_up()
    town.crew.have("sampler", 1)
    assert town.crew.up() == ("sampler-0", "reward-worker-0", "reward-worker-1")
