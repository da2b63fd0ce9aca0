"""Whether anybody can still vote."""

from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.labelling.people import nobody_can_go_on


def test_nobody_is_waited_for_who_went_away_or_never_came(store):
    store.add_pairs([Pair(f"p{number}", f"Say {number}:", "yes", "no", is_calibration=True) for number in (1, 2)])
    for name in ("Ada", "Bo", "Cy"):
        store.add_annotator(name)
    assert not nobody_can_go_on(store)  # and nobody has begun

    def vote(name, pair):
        given = Vote(f"{name} {pair}", pair, name, Choice("preference", 1), "a", 1.0, 1.0)
        assert store.vote(given) == "recorded"

    vote("Ada", "p1")
    vote("Bo", "p1")
    assert not nobody_can_go_on(store)  # nobody is through
    assert store.lease("Bo").pair.id == "p2"
    vote("Ada", "p2")
    assert not nobody_can_go_on(store)  # Bo is reading
    store.release("Bo", "p2")
    assert nobody_can_go_on(store)
    assert nobody_can_go_on(store, ["Ada"])
    assert not nobody_can_go_on(store, ["Ada", "Cy"])
    vote("Bo", "p2")
    vote("Cy", "p1")
    vote("Cy", "p2")
    assert nobody_can_go_on(store, ["Dee"])  # every pair has its votes
