"""A worker that is slow: another one does its chunk too, and what that cost is told."""

import pytest

from tests.launch.cluster import Cluster, Done
from tests.launch.test_pool import turn, values


def overtaken(median=2.0):
    """w1 got its chunk at 2 s, w2 the same one at 10 s, and is done with it at 12 s."""
    cluster = Cluster("w1", "w2")
    pool = cluster.pool()
    first = pool.begin("ab")
    turn(cluster, pool, after=median)
    for worker in ("w1", "w2"):
        cluster.finish(worker, Done("seen", seconds=median))
    turn(cluster, pool)
    values(first)
    job = pool.begin("c")
    turn(cluster, pool, after=8.0)
    assert cluster.at() == {"w1": "c", "w2": "c"}
    return cluster, pool, job


def test_the_first_answer_counts_and_what_it_came_later_is_told():
    cluster, pool, job = overtaken()
    cluster.finish("w2")
    turn(cluster, pool, after=2.0)
    assert values(job) == ["C"]
    assert cluster.words == [
        "w1 (node-1) is slow: 10.0 s at a chunk; the median takes 2.0 s; w2 has done it too, which cost 8.0 s"
    ]
    (event,) = [event for event in pool.events if event["what"] == "overtaken"]
    assert (event["who"], event["by"], event["lost_seconds"]) == ("w1", "w2", 8.0)
    turn(cluster, pool, after=2.0)
    rows = {row["name"]: row for row in cluster.tables[-1]["workers"]}
    assert (rows["w1"]["overtaken"], rows["w1"]["overtaken_seconds"]) == (1, 8.0)
    assert (rows["w2"]["overtaken"], rows["w2"]["overtaken_seconds"]) == (0, 0.0)


def test_a_slow_one_that_is_first_all_the_same_is_not_overtaken():
    cluster, pool, job = overtaken()
    cluster.finish("w1", Done("slow but first", seconds=10.0))
    turn(cluster, pool, after=2.0)
    assert values(job) == ["slow but first"]
    assert cluster.words == []


@pytest.mark.parametrize("seconds, times", [(10.0, 1), (2.0, 2)])
def test_it_is_told_once_until_the_worker_was_as_fast_as_others(seconds, times):
    cluster, pool, _ = overtaken()
    cluster.finish("w2", Done("first", seconds=2.0))
    turn(cluster, pool, after=2.0)
    cluster.finish("w1", Done("late"))
    turn(cluster, pool)
    job = pool.begin("d")
    cluster.finish("w1", Done("alone", seconds=seconds))
    turn(cluster, pool, after=1.0)
    values(job)
    job = pool.begin("e")
    turn(cluster, pool, after=20.0)
    cluster.finish("w2", Done("first", seconds=2.0))
    turn(cluster, pool, after=2.0)
    values(job)
    assert len(cluster.words) == times
