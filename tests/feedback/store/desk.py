import itertools

from rlhfkit.feedback.votes import Choice, Pair, Vote

A, B = Choice("preference", 2), Choice("preference", -2)


TIE, BAD, SKIP = Choice("tie"), Choice("both_bad"), Choice("skip", skip_reason="unclear")


NUMBERS = itertools.count()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


def pair(id, **columns):
    return Pair(id, f"prompt of {id}", "one answer", "another answer", **columns)


def vote_on(pair_id, annotator, choice=A, **columns):
    values = {"id": f"vote-{next(NUMBERS)}", "shown_left": "a", "active_seconds": 2.0, "wall_seconds": 3.0}
    return Vote(pair_id=pair_id, annotator=annotator, choice=choice, **{**values, **columns})


def say(store, pair_id, annotator, choice=A):
    vote = vote_on(pair_id, annotator, choice)
    return store.vote(vote), vote


def work(store, annotator, choice=A):
    """Lease, vote; the id of the pair, or None where there was no task."""
    task = store.lease(annotator)
    if task is None:
        return None
    assert say(store, task.pair.id, annotator, choice)[0] == "recorded"
    return task.pair.id
