"""The store of votes: tasks."""

from collections import Counter

from rlhfkit.feedback.states import AnnotatorProgress
from rlhfkit.feedback.votes import Choice
from tests.feedback.store.desk import BAD, SKIP, TIE, A, B, pair, say, vote_on, work


def test_tasks_come_in_the_order_of_adding(make_store):
    store = make_store()
    store.add_pairs([pair(id) for id in ("c", "a", "b")])
    assert [work(store, "ann") for _ in range(4)] == ["c", "a", "b", None]


def test_two_people_are_not_asked_the_same_beyond_the_overlap(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p1"), pair("p2")])
    assert store.lease("ann").pair.id == "p1"
    assert store.lease("bob").pair.id == "p2"
    assert store.lease("eve") is None
    say(store, "p1", "ann")
    assert store.lease("eve") is None
    assert store.lease("ann") is None


def test_pairs_that_others_have_begun_come_first(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair(f"p{index}") for index in range(4)])
    store.lease("ann")
    assert work(store, "bob") == "p0"
    assert work(store, "bob") == "p1"
    assert store.lease("eve").pair.id == "p1"  # ann has p0
    assert store.lease("kim").pair.id == "p2"


def test_calibration_pairs_are_spread_at_their_share(make_store):
    store = make_store()
    store.add_pairs([pair(f"c{index}", is_calibration=True) for index in range(2)])
    store.add_pairs([pair(f"p{index}") for index in range(8)])
    # 2 of 10: every fifth task.
    order = ["p0", "p1", "p2", "p3", "c0", "p4", "p5", "p6", "p7", "c1", None]
    assert [work(store, "ann") for _ in range(11)] == order


def test_one_who_comes_late_does_not_get_all_calibration_pairs_at_once(make_store):
    store = make_store(overlap=1, calibration_overlap=2)
    store.add_pairs([pair(f"p{index}", is_calibration=index % 4 == 0) for index in range(16)])
    for _ in range(8):
        work(store, "ann")
    # ann decided p1 p2 p3 p0 p5 p6 p7 p4; 4 of 16 are of the pool: every fourth task.
    assert [work(store, "bob") for _ in range(8)] == ["p9", "p10", "p11", "p0", "p13", "p14", "p15", "p4"]


def test_calibration_pairs_are_asked_of_more_people(make_store):
    store = make_store(overlap=1, calibration_overlap=3)
    store.add_pairs([pair("c", is_calibration=True)])
    assert [work(store, name) for name in ("ann", "bob", "eve", "kim")] == ["c", "c", "c", None]


def test_the_share_is_that_of_the_newest_round(make_store):
    store = make_store()
    store.add_pairs([pair(f"old{index}", round=1) for index in range(4)])
    store.add_pairs([pair(f"new{index}", round=2, is_calibration=index < 2) for index in range(4)])
    # 2 of 4: every second task, though 2 of 8 in all.
    order = ["old0", "new0", "old1", "new1", "old2", "old3", "new2", "new3"]
    assert [work(store, "ann") for _ in range(8)] == order


def test_one_more_is_asked_where_two_disagree(make_store):
    for index, (one, other, asks) in enumerate(
        [(A, A, False), (A, B, True), (A, TIE, True), (B, BAD, True), (TIE, BAD, False), (TIE, TIE, False)]
    ):
        store = make_store(overlap=2)
        id = f"p{index}"
        store.add_pairs([pair(id)])
        assert work(store, "ann", one) == id
        assert work(store, "bob", other) == id
        assert (store.lease("eve") is not None) == asks, (one, other)
        if asks:
            assert store.lease("kim") is None
            assert say(store, id, "eve", TIE)[0] == "recorded"
            assert store.lease("kim") is None


def test_a_calibration_pair_that_divides_people_gets_one_more_and_not_two(make_store):
    store = make_store(calibration_overlap=3)
    store.add_pairs([pair("c", is_calibration=True)])
    answers = zip(["ann", "bob", "eve", "kim", "lou"], [A, B, TIE, B, A], strict=True)
    assert [work(store, name, choice) for name, choice in answers] == ["c", "c", "c", "c", None]


def test_degrees_alone_are_no_disagreement(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair("p")])
    work(store, "ann", Choice("preference", 1))
    work(store, "bob", Choice("preference", 4))
    assert store.lease("eve") is None


def test_a_skip_is_not_counted_and_others_are_asked(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p")])
    assert work(store, "ann", SKIP) == "p"
    assert store.lease("ann") is None
    assert work(store, "bob", SKIP) == "p"
    assert work(store, "eve", A) == "p"
    assert store.lease("kim") is None
    assert [vote.choice.kind for vote in store.votes()] == ["skip", "skip", "preference"]
    assert store.progress("ann") == AnnotatorProgress(0, 1, 0, 1, 2.0)


def test_asking_again_gives_the_same_task_also_after_a_restart(make_store, clock):
    store = make_store(overlap=3, lease_seconds=60.0)
    store.add_pairs([pair(f"p{index}") for index in range(5)])
    names = [f"person {index}" for index in range(9)]
    tasks = {name: store.lease(name) for name in names}
    clock.now += 59
    for opened in (store, make_store()):
        again = {name: opened.lease(name) for name in names}
        assert {name: (task.pair, task.shown_left, task.position) for name, task in again.items()} == {
            name: (task.pair, task.shown_left, task.position) for name, task in tasks.items()
        }
        assert {task.lease_until for task in again.values()} == {clock.now + 60}


def test_a_task_comes_back_when_its_lease_is_over(make_store, clock):
    store = make_store(overlap=1, lease_seconds=60.0)
    store.add_pairs([pair("p")])
    assert store.lease("ann").lease_until == clock.now + 60
    clock.now += 59.9
    assert store.lease("bob") is None
    clock.now += 0.1
    assert store.lease("bob").pair.id == "p"
    assert store.lease("ann") is None


def test_a_late_person_gets_the_task_back_while_there_is_room(make_store, clock):
    store = make_store(overlap=1)
    store.add_pairs([pair("p0"), pair("p1")])
    assert store.lease("bob").pair.id == "p0"
    task = store.lease("ann")
    store.release("bob", "p0")
    clock.now += 10_000
    again = store.lease("ann")
    assert (again.pair.id, again.shown_left) == ("p1", task.shown_left)


def test_a_late_vote_counts_while_there_is_room_and_is_surplus_otherwise(make_store, clock):
    store = make_store(overlap=1)
    store.add_pairs([pair("p0"), pair("p1"), pair("p2")])
    assert [store.lease(name).pair.id for name in ("ann", "bob", "eve")] == ["p0", "p1", "p2"]
    clock.now += 10_000
    assert say(store, "p0", "ann")[0] == "recorded"
    assert say(store, "p1", "kim")[0] == "recorded"
    assert say(store, "p1", "bob")[0] == "surplus"
    assert store.lease("kim").pair.id == "p2"  # promised to kim now
    assert say(store, "p2", "eve")[0] == "surplus"
    assert say(store, "p2", "kim")[0] == "recorded"
    assert [(vote.pair_id, vote.annotator, vote.is_surplus) for vote in store.votes()] == [
        ("p0", "ann", False),
        ("p1", "kim", False),
        ("p1", "bob", True),
        ("p2", "eve", True),
        ("p2", "kim", False),
    ]
    assert store.queue().num_finished == 3


def test_a_heartbeat_keeps_the_task(make_store, clock):
    store = make_store(overlap=1, lease_seconds=60.0)
    store.add_pairs([pair("p"), pair("q")])
    store.lease("ann")
    for _ in range(3):
        clock.now += 50
        assert store.extend("ann", "p")
    assert store.lease("bob").pair.id == "q"
    assert not store.extend("ann", "q")
    assert not store.extend("eve", "p")
    assert not store.extend("ann", "no such pair")
    clock.now += 61
    assert store.extend("ann", "p")  # nobody else has it
    clock.now += 61
    assert store.lease("eve").pair.id == "p"
    assert not store.extend("ann", "p")
    say(store, "p", "eve")
    clock.now += 61
    assert not store.extend("eve", "p")


def test_a_released_task_goes_to_others(make_store):
    store = make_store(overlap=1)
    store.add_pairs([pair("p"), pair("q")])
    side = store.lease("ann").shown_left
    store.release("bob", "p")
    store.release("ann", "q")
    store.release("ann", "no such pair")
    assert store.lease("bob").pair.id == "q"
    store.release("ann", "p")
    assert store.lease("eve").pair.id == "p"
    store.release("eve", "p")
    task = store.lease("ann")
    assert (task.pair.id, task.shown_left) == ("p", side)


def test_sides_are_balanced_for_a_pair_and_for_a_person(make_store):
    store = make_store(overlap=6)
    store.add_pairs([pair(f"p{index}") for index in range(24)])
    left = {}
    for name in ("ann", "bob", "eve", "kim"):
        for _ in range(24):
            task = store.lease(name)
            left[name, task.pair.id] = task.shown_left
            say(store, task.pair.id, name)
    for index in range(24):
        assert Counter(left[name, f"p{index}"] for name in ("ann", "bob", "eve", "kim")) == {"a": 2, "b": 2}
    assert 9 <= Counter(left["ann", f"p{index}"] for index in range(24))["a"] <= 15
    orders = {tuple(left[name, f"p{index}"] for index in range(24)) for name in ("ann", "eve")}
    assert len(orders) == 2  # 1 in 2^24 otherwise


def test_a_task_tells_nothing_of_the_answers_of_others(make_store):
    store = make_store(overlap=2)
    store.add_pairs([pair("p")])
    store.vote(vote_on("p", "ann", comment="the secret of ann"))
    task = store.lease("bob")
    assert (task.pair, task.position) == (pair("p"), 1)
    assert "ann" not in repr(task)
    assert store.undo("bob", id="u") is None
    assert len(store.votes()) == 1
