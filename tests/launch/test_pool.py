"""A pool of workers: chunks are given out, answers taken, and the loss of any worker is borne."""

import threading

import pytest

from rlhfkit.errors import ConfigError, GenerationError
from rlhfkit.launch.pool import LEAST_KILL_SECONDS, MOST_RETRY_SECONDS, Pool
from tests.launch.cluster import Cluster, Done


def values(job):
    return [result.value for result in job.wait()]


def turn(cluster, pool, *, after=0.0):
    cluster.now += after
    pool.turn(0.0)


def test_results_come_in_the_order_of_chunks_whatever_the_order_of_answers():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("abc")
    cluster.finish("w2")
    turn(cluster, pool)
    turn(cluster, pool)
    cluster.finish("w2")
    cluster.finish("w1")
    turn(cluster, pool)
    assert cluster.given == [("w1", "a"), ("w2", "b"), ("w2", "c")]
    assert values(job) == ["A", "B", "C"]
    assert (pool.jobs, len(pool.schedule)) == ({}, 0)


def test_a_call_is_given_out_at_once_without_waiting_for_the_thread():
    cluster = Cluster("w1")
    pool = cluster.pool()
    pool.begin("ab")
    assert cluster.at() == {"w1": "a"}


def test_what_was_asked_for_first_is_done_first():
    cluster = Cluster("w1")
    pool = cluster.pool()
    first, second = pool.begin("ab"), pool.begin("cd")
    for _ in range(4):
        cluster.finish("w1")
        turn(cluster, pool)
        turn(cluster, pool)
    assert [chunk for _, chunk in cluster.given] == ["a", "b", "c", "d"]
    assert (values(first), values(second)) == (["A", "B"], ["C", "D"])


# ── loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_chunk_of_a_lost_worker_is_given_to_the_next_one_before_all_others():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("abc")
    cluster.lose("w1", "the node is gone")
    cluster.finish("w2")
    turn(cluster, pool, after=5.0)
    turn(cluster, pool)
    assert cluster.given[2:] == [("w2", "a")]
    assert pool.workers["w1"].state == "lost"
    assert "w1 (host unknown) is lost: the node is gone; its chunk, 5.0 s of work, is given" in cluster.words[0]
    assert [event["what"] for event in pool.events] == ["joined", "joined", "lost"]
    for _ in range(2):
        cluster.finish("w2")
        turn(cluster, pool)
        turn(cluster, pool)
    assert values(job) == ["A", "B", "C"]


def test_a_lost_worker_is_tried_again_after_waits_that_grow_and_begin_anew_once_it_answers():
    cluster = Cluster("w1")
    pool = cluster.pool()
    job = pool.begin("a")
    waits = []
    for _ in range(7):
        cluster.lose("w1")
        turn(cluster, pool)
        lost_at = cluster.now
        while "w1" not in cluster.at():
            turn(cluster, pool, after=0.5)
        waits.append(cluster.now - lost_at)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, MOST_RETRY_SECONDS, MOST_RETRY_SECONDS]
    assert len(cluster.words) == 1  # one line for the user, however often it is tried
    cluster.finish("w1")
    turn(cluster, pool)
    assert values(job) == ["A"]
    pool.begin("b")
    cluster.lose("w1")
    turn(cluster, pool)
    assert pool.workers["w1"].retry_at - cluster.now == 1.0
    assert len(cluster.words) == 2
    assert pool.workers["w1"].num_restarts == 2


def test_an_answer_from_before_a_loss_is_not_taken_for_one_to_what_the_worker_got_after_it():
    cluster = Cluster("w1")
    pool = cluster.pool()
    pool.begin("x")
    cluster.finish("w1")
    turn(cluster, pool, after=1.0)  # a chunk takes a second
    job = pool.begin("ab")
    late = cluster.calls[0]
    turn(cluster, pool, after=2 * LEAST_KILL_SECONDS)  # silent: started anew
    assert cluster.restarts == ["w1"]
    turn(cluster, pool, after=2.0)
    cluster.finish("w1")
    turn(cluster, pool)
    turn(cluster, pool)
    assert cluster.at() == {"w1": "b"}
    cluster.answer(late)  # "A", while the same worker is at b
    turn(cluster, pool)
    assert not job.is_done
    assert pool.num_dropped == 1
    cluster.finish("w1")
    turn(cluster, pool)
    assert values(job) == ["A", "B"]


def test_an_answer_of_a_worker_that_is_taken_for_lost_is_dropped_and_counted():
    cluster = Cluster("w1")
    pool = cluster.pool()
    pool.begin("x")
    cluster.finish("w1")
    turn(cluster, pool, after=1.0)
    job = pool.begin("a")
    late = cluster.calls[0]
    turn(cluster, pool, after=2 * LEAST_KILL_SECONDS)
    cluster.answer(late)
    turn(cluster, pool)
    assert (pool.num_dropped, pool.workers["w1"].state, job.is_done) == (1, "lost", False)


# ── slow and silent ──────────────────────────────────────────────────────────────────────────────────────────────────


def with_a_slow_worker():
    """w1 is slow at "a", which idle w2 has got too; a chunk takes a second."""
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("ab")
    cluster.finish("w2")
    turn(cluster, pool, after=1.0)
    turn(cluster, pool, after=2.5)
    assert cluster.at() == {"w1": "a", "w2": "a"}
    return cluster, pool, job


def test_the_first_answer_to_a_slow_chunk_counts_and_the_second_is_dropped_and_counted():
    cluster, pool, job = with_a_slow_worker()
    cluster.finish("w2", Done("first"))
    turn(cluster, pool)
    assert values(job) == ["first", "B"]
    cluster.finish("w1", Done("second"))
    turn(cluster, pool)
    assert values(job) == ["first", "B"]
    assert pool.num_dropped == 1
    assert pool.workers["w1"].state == "idle"


def test_two_answers_that_come_together_are_taken_once():
    cluster, pool, job = with_a_slow_worker()
    pool.begin("c")  # so that the pool goes on
    cluster.finish("w1", Done("first"))
    cluster.finish("w2", Done("second"))
    turn(cluster, pool)
    assert values(job) == ["first", "B"]
    assert pool.num_dropped == 1


def test_a_second_answer_within_the_same_call_is_dropped():
    cluster, pool, _ = with_a_slow_worker()
    job = pool.begin("cd")
    cluster.finish("w2")
    turn(cluster, pool)
    turn(cluster, pool)
    assert cluster.at() == {"w1": "a", "w2": "c"}
    cluster.finish("w1", Done("not c"))
    turn(cluster, pool)
    turn(cluster, pool)
    assert cluster.at() == {"w1": "d", "w2": "c"}
    cluster.finish("w1")
    cluster.finish("w2")
    turn(cluster, pool)
    assert values(job) == ["C", "D"]


def test_the_loss_of_a_slow_worker_leaves_its_chunk_with_the_other():
    cluster, pool, job = with_a_slow_worker()
    cluster.lose("w1")
    turn(cluster, pool)
    turn(cluster, pool, after=1.5)  # w1 is tried again
    assert pool.workers["w1"].state == "idle"
    assert cluster.at() == {"w2": "a"}
    cluster.finish("w2")
    turn(cluster, pool)
    assert values(job) == ["A", "B"]


def test_a_silent_worker_is_started_anew_and_its_chunk_given_again():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    pool.begin("xa")
    cluster.finish("w1")
    turn(cluster, pool, after=1.0)
    turn(cluster, pool, after=LEAST_KILL_SECONDS - 1.0)
    assert cluster.restarts == []
    assert pool.workers["w2"].state == "slow"
    turn(cluster, pool, after=1.0)
    assert cluster.restarts == ["w2"]
    assert pool.workers["w2"].state == "lost"
    assert "w2 (host unknown) is lost: silent for 61 s" in cluster.words[0]


def test_how_long_is_silent_grows_with_what_a_chunk_takes():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    pool.begin("xa")
    cluster.finish("w1")
    turn(cluster, pool, after=100.0)
    turn(cluster, pool, after=5 * 3 * 100.0 - 100.0)
    assert cluster.restarts == []
    turn(cluster, pool, after=1.0)
    assert cluster.restarts == ["w2"]


def test_a_worker_whose_start_takes_longer_than_the_limit_gets_twice_as_long_each_time():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    pool.begin("xa")
    cluster.finish("w1")
    turn(cluster, pool, after=1.0)
    cluster.names.remove("w1")
    patience, begun = [], 0.0
    while len(cluster.restarts) < 3:
        open_before, num_restarts = cluster.at(), len(cluster.restarts)
        turn(cluster, pool, after=1.0)
        if not open_before and cluster.at():
            begun = cluster.now
        if len(cluster.restarts) > num_restarts:
            patience.append(cluster.now - begun - 1.0)
    assert patience == [60.0, 120.0, 240.0]


def test_nobody_is_silent_before_a_chunk_is_done():
    cluster = Cluster("w1")
    pool = cluster.pool()
    pool.begin("a")
    turn(cluster, pool, after=1e6)
    assert cluster.restarts == []


# ── liars ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def wrong(result):
    return "sampled nonsense" if result.value == "?" else None


def test_what_a_liar_gave_is_thrown_away_and_it_is_started_anew():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("ab", wrong=wrong)
    cluster.finish("w1", Done("?"))
    turn(cluster, pool)
    assert cluster.restarts == ["w1"]
    assert (pool.workers["w1"].state, pool.workers["w1"].num_faults) == ("lost", 1)
    assert cluster.words == ["w1 (node-1) sampled nonsense; what it gave is thrown away"]
    turn(cluster, pool, after=1.0)  # it may try again
    assert cluster.at() == {"w1": "a", "w2": "b"}
    cluster.finish("w1")
    cluster.finish("w2")
    turn(cluster, pool)
    assert values(job) == ["A", "B"]
    assert pool.workers["w1"].num_chunks == 1  # what was thrown away is not counted as work


def test_a_liar_is_refused_after_three_faults_and_the_others_go_on():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("ab", wrong=wrong)
    for _ in range(3):
        cluster.finish("w1", Done("?"))
        turn(cluster, pool)
        turn(cluster, pool, after=40.0)
    assert pool.workers["w1"].state == "refused"
    assert cluster.restarts == ["w1", "w1"]  # not after the third
    assert cluster.words[-1] == "w1 (node-1) is not asked any more, after 3 faults: sampled nonsense"
    turn(cluster, pool, after=1000.0)
    cluster.finish("w2")
    turn(cluster, pool)
    turn(cluster, pool)
    cluster.finish("w2")
    turn(cluster, pool)
    assert values(job) == ["A", "B"]


def test_what_a_worker_raises_by_accident_counts_as_a_fault():
    cluster = Cluster("w1")
    pool = cluster.pool()
    job = pool.begin("a")
    cluster.raise_from("w1", ZeroDivisionError("division by zero"))
    turn(cluster, pool)
    assert pool.workers["w1"].num_faults == 1
    assert cluster.restarts == ["w1"]
    turn(cluster, pool, after=1.0)
    cluster.finish("w1")
    turn(cluster, pool)
    assert values(job) == ["A"]


def all_refused(*names):
    """A pool whose workers were all refused while it had a job."""
    cluster = Cluster(*names)
    pool = cluster.pool()
    job = pool.begin("abc"[: len(names)], wrong=wrong)
    for _ in range(3):
        for name in cluster.at():
            cluster.finish(name, Done("?", host="node-3"))
        turn(cluster, pool)
        turn(cluster, pool, after=1.0)
    return cluster, pool, job


def test_the_trainer_hears_which_worker_was_the_last_to_be_refused_and_why():
    _, pool, job = all_refused("w1", "w2")
    with pytest.raises(
        GenerationError, match=r"after 3 faults, the last, w[12] on node-3, because it sampled nonsense"
    ):
        job.wait()
    assert (pool.jobs, len(pool.schedule)) == ({}, 0)


def test_a_job_that_begins_when_all_are_refused_fails_instead_of_waiting_for_ever():
    _, pool, _ = all_refused("w1")
    with pytest.raises(GenerationError, match="no worker is left"):
        pool.begin("z").wait()


def test_a_job_fails_when_the_last_worker_that_was_not_refused_leaves():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("ab", wrong=wrong)
    for _ in range(3):
        cluster.finish("w1", Done("?"))
        turn(cluster, pool)
        turn(cluster, pool, after=1.0)
    assert not job.is_done
    cluster.names.remove("w2")
    turn(cluster, pool, after=1.0)
    with pytest.raises(GenerationError, match="the last, w1 on node-1"):
        job.wait()


def test_a_job_waits_where_no_worker_is_refused_but_none_is_there_yet():
    cluster = Cluster()
    pool = cluster.pool()
    job = pool.begin("a")
    turn(cluster, pool, after=100.0)
    assert not job.is_done


# ── errors on purpose ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_that_a_worker_raised_on_purpose_reaches_the_waiting_trainer():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("abc")
    cluster.raise_from("w1", ConfigError("rollout.top_p is 2: at most 1"))
    turn(cluster, pool)
    with pytest.raises(ConfigError, match=r"rollout\.top_p is 2"):
        job.wait()
    assert len(pool.schedule) == 0
    assert (pool.workers["w1"].state, pool.workers["w1"].num_faults) == ("idle", 0)


def test_the_same_error_of_a_second_worker_is_nobodys_fault():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    pool.begin("ab")
    for name in ("w1", "w2"):
        cluster.raise_from(name, ConfigError("rollout.top_p is 2: at most 1"))
    turn(cluster, pool)
    assert [worker.num_faults for worker in pool.workers.values()] == [0, 0]
    assert cluster.restarts == []


def test_an_error_of_the_transport_ends_all_jobs_and_what_comes_after_goes_on():
    cluster = Cluster("w1")
    pool = cluster.pool()
    job = pool.begin("ab")
    cluster.fails = OSError("no cluster at this address")
    pool.start()
    with pytest.raises(OSError, match="no cluster"):
        job.wait()
    pool.stop()
    assert (pool.jobs, len(pool.schedule)) == ({}, 0)  # nobody works on for it
    cluster.fails = None
    cluster.finish("w1")
    turn(cluster, pool)
    again = pool.begin("c")
    cluster.finish("w1")
    turn(cluster, pool)
    assert values(again) == ["C"]


# ── members ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_joins_late_gets_work():
    cluster = Cluster("w1")
    pool = cluster.pool()
    pool.begin("ab")
    cluster.names.append("w2")
    turn(cluster, pool, after=1.0)
    assert cluster.at() == {"w1": "a", "w2": "b"}


def test_a_worker_that_leaves_gives_its_chunk_back():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("abc")
    gone = cluster.calls[0]
    cluster.names.remove("w1")
    cluster.finish("w2")
    turn(cluster, pool, after=1.0)
    turn(cluster, pool)
    assert cluster.at()["w2"] == "a"
    cluster.answer(gone, Done("late"))
    cluster.finish("w2")
    turn(cluster, pool)
    turn(cluster, pool)
    cluster.finish("w2")
    turn(cluster, pool)
    assert values(job) == ["A", "B", "C"]
    assert [event["what"] for event in pool.events][-1] == "left"


def test_an_answer_of_a_worker_that_left_does_not_count_for_one_that_joins_by_the_same_name():
    cluster = Cluster("w1")
    pool = cluster.pool()
    pool.begin("a")
    gone = cluster.call_of("w1")
    cluster.names.remove("w1")
    turn(cluster, pool, after=1.0)
    job = pool.begin("b")
    cluster.names.append("w1")
    turn(cluster, pool, after=1.0)
    assert cluster.at() == {"w1": "a"}
    cluster.finish("w1")
    turn(cluster, pool)
    turn(cluster, pool)
    cluster.answer(gone)
    turn(cluster, pool)
    assert not job.is_done
    cluster.finish("w1")
    turn(cluster, pool)
    assert values(job) == ["B"]


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dropped_jobs_chunks_are_given_to_nobody_and_its_answers_are_dropped():
    cluster = Cluster("w1")
    pool = cluster.pool()
    job = pool.begin("ab")
    pool.drop(job)
    after = pool.begin("c")
    cluster.finish("w1")
    turn(cluster, pool)
    assert (job.results, job.number in pool.jobs, pool.num_dropped) == ({}, False, 1)
    turn(cluster, pool)
    assert [chunk for _, chunk in cluster.given] == ["a", "c"]
    cluster.finish("w1")
    turn(cluster, pool)
    assert values(after) == ["C"]


def test_a_job_tells_of_each_chunk_once_and_as_soon_as_it_is_done():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    job = pool.begin("ab")
    told, heard = [], threading.Event()

    def on_chunk(place):
        told.append(place)
        heard.set()

    waiting = threading.Thread(target=job.wait, args=(on_chunk,))
    waiting.start()
    cluster.finish("w2")
    turn(cluster, pool)
    assert heard.wait(10.0)
    assert told == [1]
    cluster.finish("w1")
    turn(cluster, pool)
    waiting.join(10.0)
    assert told == [1, 0]


def test_a_result_is_handed_on_at_once_and_a_second_answer_is_not():
    cluster, pool, _ = with_a_slow_worker()
    pool.drop(next(iter(pool.jobs.values())))
    cluster.finish("w1")
    turn(cluster, pool)
    got = []
    pool.begin("c", on_result=lambda place, result: got.append((place, result.value)))
    cluster.finish("w1")
    turn(cluster, pool)
    assert got == [(0, "C")]


def test_jobs_run_by_the_pools_own_thread_end():
    cluster = Cluster("w1", "w2")
    give = cluster.give

    def answered_at_once(worker, ticket, chunk):
        give(worker, ticket, chunk)
        cluster.finish(worker)

    cluster.give = answered_at_once
    pool = Pool(cluster, slow_factor=3.0)
    pool.start()
    try:
        assert values(pool.begin("abcde")) == list("ABCDE")
    finally:
        pool.stop()


def test_the_table_says_how_each_worker_is():
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    pool.begin("abc", iteration=4)
    cluster.finish("w1", Done("A", seconds=2.0, num_units=30, host="node-2", pid=11))
    turn(cluster, pool, after=2.0)
    turn(cluster, pool, after=3.0)
    table = cluster.tables[-1]
    assert table["workers"][0] == {
        "name": "w1",
        "state": "working",
        "host": "node-2",
        "pid": 11,
        "iteration": 4,
        "chunks": 1,
        "per_second": 15.0,
        "restarts": 0,
        "faults": 0,
        "overtaken": 0,
        "overtaken_seconds": 0.0,
        "seconds_in_state": 0.0,
    }
    assert (table["open_chunks"], table["waiting_chunks"], table["median_chunk_seconds"]) == (2, 0, 2.0)
