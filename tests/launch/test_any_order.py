"""Whatever happens in whatever order, every chunk is taken once, and its result is its own."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.launch.cluster import Cluster, Done

NAMES = ("w0", "w1", "w2", "w3")
STEPS = st.one_of(
    st.tuples(st.just("begin"), st.integers(1, 5)),
    st.tuples(st.sampled_from(["finish", "lose", "lie", "crash", "late"]), st.integers(0, 7)),
    st.tuples(st.sampled_from(["join", "leave"]), st.sampled_from(NAMES)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 1.0, 4.0, 70.0])),
    st.tuples(st.just("drop"), st.integers(0, 3)),
)


class History:
    """A cluster where calls of workers that are killed or gone may still be answered, and all that came of its jobs."""

    def __init__(self):
        self.cluster = Cluster("w0", "w1")
        self.pool = self.cluster.pool()
        self.jobs, self.dropped, self.taken = [], set(), []
        self.lost_calls = []
        self.cluster.restart = self.restart

    def restart(self, worker):
        self.lost_calls += [call for call in self.cluster.calls if call.worker == worker]
        self.cluster.calls = [call for call in self.cluster.calls if call.worker != worker]

    def begin(self, num):
        number = len(self.jobs)
        self.jobs.append(
            self.pool.begin(
                [(number, place) for place in range(num)],
                wrong=lambda result: "lies" if result.value == "?" else None,
                on_result=lambda place, result: self.taken.append(((number, place), result.value)),
            )
        )

    def finish(self, which):
        self._of_one(which, lambda call: self.cluster.answer(call, Done(call.chunk)))

    def lie(self, which):
        self._of_one(which, lambda call: self.cluster.answer(call, Done("?")))

    def lose(self, which):
        self._of_one(which, lambda call: (self.cluster.calls.append(call), self.cluster.lose(call.worker)))

    def crash(self, which):
        self._of_one(
            which, lambda call: (self.cluster.calls.append(call), self.cluster.raise_from(call.worker, OSError("disk")))
        )

    def late(self, which):
        if self.lost_calls:
            call = self.lost_calls.pop(which % len(self.lost_calls))
            self.cluster.answer(call, Done(call.chunk))

    def join(self, name):
        if name not in self.cluster.names:
            self.cluster.names.append(name)

    def leave(self, name):
        if name in self.cluster.names and len(self.cluster.names) > 1:
            self.cluster.names.remove(name)
            self.restart(name)

    def wait(self, seconds):
        self.cluster.now += seconds

    def drop(self, which):
        if which < len(self.jobs) and not self.jobs[which].is_done:
            self.dropped.add(which)
            self.pool.drop(self.jobs[which])

    def _of_one(self, which, act):
        if self.cluster.calls:
            act(self.cluster.calls.pop(which % len(self.cluster.calls)))

    def end(self):
        """One that neither lies nor dies joins, and does what the others, who leave, have not done."""
        for name in list(self.cluster.names):
            self.restart(name)
        self.cluster.names[:] = ["honest"]
        for _ in range(500):
            self.wait(1.0)
            for call in [call for call in self.cluster.calls if call.worker == "honest"]:
                self.cluster.calls.remove(call)
                self.cluster.answer(call, Done(call.chunk))
            self.pool.turn(0.0)
            if not self.pool.jobs:
                return


@settings(max_examples=120, deadline=None)
@given(st.lists(STEPS, max_size=40), st.booleans())
def test_every_chunk_is_taken_once_with_its_own_result(steps, together):
    history = History()
    for name, argument in steps:
        getattr(history, name)(argument)
        if not together:
            history.pool.turn(0.0)
        busy = Counter(call.chunk for call in history.cluster.calls)
        assert not busy or max(busy.values()) <= 2
        at = Counter(call.worker for call in history.cluster.calls)
        assert not at or max(at.values()) == 1
    history.pool.turn(0.0)
    history.end()
    for number, job in enumerate(history.jobs):
        if number not in history.dropped and job.error is None:
            assert job.is_done
            assert [result.value for result in job.wait()] == [(number, place) for place in range(len(job.chunks))]
        assert job.error is None or "no worker is left" in str(job.error)
    taken = Counter(key for key, _ in history.taken)
    assert all(count == 1 for count in taken.values())
    assert all(key == value for key, value in history.taken)
    assert len(history.pool.schedule) == 0
