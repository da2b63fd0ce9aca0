"""Which worker gets which chunk, decided from what has happened and what time it is."""

import pytest

from rlhfkit.launch.schedule import REMEMBERED, Schedule


@pytest.fixture
def schedule():
    """Chunks a, b and c, where three times the median is slow."""
    schedule = Schedule(slow_factor=3.0)
    schedule.add("abc")
    return schedule


def with_median(seconds, *, slow_factor=3.0):
    """A schedule that has seen a chunk take so long, and has none left."""
    schedule = Schedule(slow_factor=slow_factor)
    schedule.add(["before"])
    schedule.assign(["w"], 0.0)
    schedule.finished("w", "before", seconds)
    return schedule


def test_chunks_are_given_in_order_and_once(schedule):
    assert schedule.assign(["w1", "w2"], 0.0) == [("w1", "a"), ("w2", "b")]
    assert schedule.assign(["w3", "w4"], 0.0) == [("w3", "c")]
    assert (len(schedule), schedule.num_waiting) == (3, 0)


def test_chunks_of_a_later_call_come_after_those_that_wait(schedule):
    schedule.add("d")
    assert [key for _, key in schedule.assign(["w1", "w2", "w3", "w4"], 0.0)] == ["a", "b", "c", "d"]


def test_a_lost_chunk_goes_back_to_its_place_before_those_that_waited_behind_it(schedule):
    schedule.assign(["w1", "w2"], 0.0)
    assert schedule.lost("w1") == ["a"]
    assert schedule.num_waiting == 2
    assert schedule.assign(["w3", "w4"], 1.0) == [("w3", "a"), ("w4", "c")]


def test_the_loss_of_an_idle_worker_gives_nothing_back(schedule):
    schedule.assign(["w1"], 0.0)
    assert schedule.lost("w2") == []
    assert schedule.num_waiting == 2


def test_the_first_answer_counts_and_the_second_does_not(schedule):
    schedule.assign(["w1"], 0.0)
    assert schedule.finished("w1", "a", 1.0)
    assert not schedule.finished("w2", "a", 2.0)
    assert schedule.median_seconds == 1.0  # the second one says nothing of how long a chunk takes
    assert len(schedule) == 2


def test_nothing_is_slow_before_a_chunk_is_done(schedule):
    schedule.assign(["w1", "w2", "w3"], 0.0)
    assert schedule.median_seconds is None
    assert schedule.assign(["w4"], 1e6) == []


def test_a_chunk_is_slow_beyond_the_factor_times_the_median_and_not_at_it():
    schedule = with_median(2.0)
    schedule.add("a")
    schedule.assign(["w1"], 10.0)
    assert schedule.assign(["w2"], 16.0) == []
    assert schedule.assign(["w2"], 16.1) == [("w2", "a")]


def test_a_chunk_is_at_two_workers_at_most():
    schedule = with_median(1.0)
    schedule.add("a")
    schedule.assign(["w1"], 0.0)
    assert schedule.assign(["w2", "w3"], 100.0) == [("w2", "a")]
    assert schedule.assign(["w3"], 200.0) == []


def test_what_waits_is_begun_before_what_is_slow_elsewhere():
    schedule = with_median(1.0)
    schedule.add("ab")
    schedule.assign(["w1"], 0.0)
    assert schedule.assign(["w2", "w3"], 100.0) == [("w2", "b"), ("w3", "a")]


def test_of_slow_chunks_the_one_that_began_first_is_given_first():
    schedule = with_median(1.0)
    schedule.add("ab")
    schedule.assign(["w1"], 0.0)
    schedule.assign(["w2"], 0.0)
    schedule.lost("w1")
    schedule.assign(["w3"], 5.0)  # a again, later than b
    assert schedule.assign(["w4", "w5"], 100.0) == [("w4", "b"), ("w5", "a")]


def test_a_chunk_that_one_of_two_loses_stays_with_the_other():
    schedule = with_median(1.0)
    schedule.add("a")
    schedule.assign(["w1"], 0.0)
    schedule.assign(["w2"], 100.0)
    schedule.lost("w1")
    assert schedule.num_waiting == 0
    assert schedule.assign(["w3"], 100.5) == []  # w2 began half a second ago
    assert schedule.assign(["w3"], 104.0) == [("w3", "a")]


def test_the_time_of_a_chunk_counts_from_when_that_worker_began():
    schedule = with_median(1.0)
    schedule.add("a")
    schedule.assign(["w1"], 0.0)
    schedule.assign(["w2"], 100.0)
    schedule.finished("w2", "a", 103.0)
    assert schedule.median_seconds == 2.0  # of 1 and 3


def test_an_answer_of_a_worker_that_was_lost_says_nothing_of_how_long_a_chunk_takes(schedule):
    schedule.assign(["w1"], 0.0)
    schedule.lost("w1")
    assert schedule.finished("w1", "a", 50.0)
    assert schedule.median_seconds is None


def test_the_median_is_of_the_last_chunks():
    schedule = with_median(1000.0)
    for number in range(REMEMBERED):
        schedule.add([number])
        schedule.assign(["w"], 0.0)
        schedule.finished("w", number, 1.0 if number % 2 else 3.0)
    assert schedule.median_seconds == 2.0


def test_dropped_chunks_are_given_to_nobody_and_their_answers_do_not_count(schedule):
    schedule.assign(["w1"], 0.0)
    schedule.drop("ab")
    assert schedule.assign(["w2", "w3"], 0.0) == [("w2", "c")]
    assert not schedule.finished("w1", "a", 1.0)
    schedule.drop("a")  # once more does no harm
