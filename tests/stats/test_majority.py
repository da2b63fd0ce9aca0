import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import outcome_of, preferences_of
from rlhfkit.records import Message
from tests.feedback.label_cases import CHOICES, chosen, labels, pair, vote

SYSTEM, QUESTION = Message("system", "Be kind."), Message("user", "Why?")


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ((), "without_votes"),
        (("skip",), "skipped"),
        (("skip", "skip"), "skipped"),
        (("tie",), "tie"),
        (("both_bad",), "both_bad"),
        ((1,), "a"),
        ((-4,), "b"),
        ((1, "skip", "skip"), "a"),
        ((4, -1), "tie"),  # signs count, degrees do not
        ((1, 1, -4), "a"),
        ((3, "tie"), "tie"),
        ((3, "tie", "tie"), "tie"),
        ((3, 3, "tie"), "a"),
        ((3, 3, -3, "tie"), "a"),
        ((3, 3, "tie", "both_bad"), "tie"),  # as many find neither better
        ((3, "both_bad", "both_bad"), "both_bad"),
        (("tie", "both_bad"), "tie"),
        ((-2, -2, "both_bad"), "b"),
    ],
)
def test_outcome_of_one_pair(said, outcome):
    assert outcome_of(chosen(*said)) == outcome


@pytest.mark.parametrize(
    ("said", "outcome"),
    [((3, "tie", "tie"), "a"), (("tie", "tie"), "tie"), ((3, "both_bad"), "tie"), ((3, -3, "tie"), "tie")],
)
def test_ties_can_be_ignored_and_still_make_no_preference(said, outcome):
    assert outcome_of(chosen(*said), ties="ignore") == outcome


def test_skips_do_not_count_towards_the_votes_needed():
    assert outcome_of(chosen(3, "skip"), min_votes=2) == "too_few"
    assert outcome_of(chosen(3, 3, "skip"), min_votes=2) == "a"
    assert outcome_of(chosen(3, "tie", 3), min_votes=3) == "a"


def test_preference_names_the_better_response_and_where_it_comes_from():
    found = preferences_of([pair(origin="q.jsonl:3")], chosen(-2))
    assert found.preferences[0].prompt.content == "Why?"
    assert found.preferences[0].prompt.origin == "q.jsonl:3"
    assert (found.preferences[0].chosen, found.preferences[0].rejected) == ("No idea.", "Because.")
    assert found.preferences[0].margin is None
    assert (found.pair_ids, found.strengths) == (["p"], [2.0])


def test_margin_is_the_mean_degree_of_those_who_agree():
    found = preferences_of([pair()], chosen(4, 1, 1, -4), use_margin=True)
    assert found.preferences[0].margin == 0.5  # (4 + 1 + 1) / 3 of 4
    assert preferences_of([pair()], chosen(-4), use_margin=True).preferences[0].margin == 1.0
    assert preferences_of([pair()], chosen(1), use_margin=True).preferences[0].margin == 0.25


def test_surplus_votes_count():
    votes = [vote(annotator="ann"), vote(annotator="bob", choice=CHOICES[0], is_surplus=True)]
    assert preferences_of([pair()], votes).num_tied == 1


def test_every_pair_is_counted_once():
    pairs = [pair(str(number)) for number in range(7)]
    said = [(1,), (1, -1), ("skip",), ("both_bad",), (), (2, 2), ("tie",)]
    votes = [one for number, each in enumerate(said) for one in chosen(*each, pair_id=str(number))]
    found = preferences_of(pairs, votes)
    assert found.pair_ids == ["0", "5"]
    assert (found.num_pairs, found.num_tied, found.num_skipped) == (7, 2, 1)
    assert (found.num_both_bad, found.num_without_votes, found.num_too_few) == (1, 1, 0)


def test_part_and_rounds_choose_pairs():
    pairs = [pair("1", part="test"), pair("2", round=2), pair("3", round=3)]
    votes = [one for each in pairs for one in chosen(3, pair_id=each.id)]
    assert preferences_of(pairs, votes, part="test").pair_ids == ["1"]
    assert preferences_of(pairs, votes, part="train", rounds=(2, 4)).pair_ids == ["2"]
    assert preferences_of(pairs, votes, rounds=[3]).num_pairs == 1


def test_whole_conversations_become_what_they_share_and_two_last_turns():
    one, other = Message("assistant", "Rayleigh."), Message("assistant", "Magic.")
    conversations = pair(prompt="", response_a=(SYSTEM, QUESTION, one), response_b=(SYSTEM, QUESTION, other))
    [preference] = preferences_of([conversations], chosen(-1)).preferences
    assert preference.prompt.content == (SYSTEM, QUESTION)
    assert (preference.chosen, preference.rejected) == ("Magic.", "Rayleigh.")


def test_prompt_and_turns_after_it_become_one_prompt():
    follow = (Message("assistant", "What?"), Message("user", "The sky."))
    one, other = (*follow, Message("assistant", "1")), (*follow, Message("assistant", "2"))
    [preference] = preferences_of([pair(prompt="Why?", response_a=one, response_b=other)], chosen(1)).preferences
    assert preference.prompt.content == (QUESTION, *follow)
    assert (preference.chosen, preference.rejected) == ("1", "2")


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (("", (QUESTION, Message("assistant", "1")), (SYSTEM, Message("assistant", "2"))), "part at turn 1 of 2 and 2"),
        (("", (QUESTION, Message("assistant", "1")), (QUESTION,)), "part at turn 2 of 2 and 1"),
        (("", (QUESTION, Message("user", "1")), (QUESTION, Message("user", "2"))), "ends with a turn of the user"),
        (("", (Message("assistant", "1"),), (Message("assistant", "2"),)), "the prompt ends with a turn of nobody"),
        (((QUESTION, Message("assistant", "x")), "1", "2"), "the prompt ends with a turn of assistant"),
        (("Why?", "same", "same"), "both responses are equal"),
        (("Why?", " \n", "x"), "a response is blank"),
        (("Why?", "1", (Message("assistant", "2"),)), "one response is text and the other a conversation"),
        (("", (), (QUESTION,)), "a conversation is empty"),
    ],
)
def test_pair_that_makes_no_preference_is_counted_with_the_reason(contents, why):
    prompt, one, other = contents
    found = preferences_of(
        [pair("x", prompt, one, other), pair("ok")], [*chosen(2, pair_id="x"), *chosen(2, pair_id="ok")]
    )
    assert found.pair_ids == ["ok"]
    [message] = found.unusable
    assert message.startswith('pair "x": ')
    assert why in message


@pytest.mark.parametrize(
    ("pairs", "votes", "why"),
    [
        ([pair("x"), pair("x")], [], 'two pairs have the id "x"'),
        ([pair("x")], [vote("y", id="v")], 'vote "v" is on the pair "y", which is not there'),
        ([pair("x")], [vote("x", "1", id="v"), vote("x", "2", id="v")], 'two votes have the id "v"'),
        ([pair("x")], [vote("x", "ann", id="v"), vote("x", "ann", id="w")], '"ann" has two votes on the pair "x"'),
    ],
)
def test_votes_that_do_not_belong_to_the_pairs_are_refused(pairs, votes, why):
    with pytest.raises(DataError, match=r"expected|add") as caught:
        preferences_of(pairs, votes)
    assert why in str(caught.value)


def winner_by_hand(votes, ties):
    """The oracle: the side for which every other opinion has fewer people, by listing the people."""
    people = {"a": set(), "b": set(), "neither": set()}
    for one in votes:
        if one.choice.kind == "preference":
            people["a" if one.choice.strength > 0 else "b"].add(one.annotator)
        elif one.choice.kind == "both_bad" or (one.choice.kind == "tie" and ties == "drop"):
            people["neither"].add(one.annotator)
    for side, rivals in (("a", ("b", "neither")), ("b", ("a", "neither"))):
        if all(len(people[side]) > len(people[rival]) for rival in rivals):
            return side
    return None


@pytest.mark.thorough
@given(labels(), st.sampled_from(["drop", "ignore"]))
def test_only_a_majority_for_one_side_ever_becomes_a_preference(drawn, ties):
    pairs, votes = drawn
    found = preferences_of(pairs, votes, ties=ties)
    told = {message.split('"')[1] for message in found.unusable}
    chosen_text = dict(zip(found.pair_ids, (preference.chosen for preference in found.preferences), strict=True))
    for each in pairs:
        won = winner_by_hand([one for one in votes if one.pair_id == each.id], ties)
        if won is None:
            assert each.id not in chosen_text
        elif each.id in chosen_text:
            response = each.response_a if won == "a" else each.response_b
            assert chosen_text[each.id] == (response if isinstance(response, str) else response[-1].content)
    num_won = sum(winner_by_hand([one for one in votes if one.pair_id == each.id], ties) is not None for each in pairs)
    assert len(chosen_text) + len(found.unusable) == num_won
    others = found.num_tied + found.num_both_bad + found.num_skipped + found.num_too_few + found.num_without_votes
    assert len(chosen_text) + len(found.unusable) + others == found.num_pairs == len(pairs)
    assert len(told) <= len(found.unusable)


@given(labels())
def test_without_a_vote_for_a_side_there_is_no_preference(drawn):
    pairs, votes = drawn
    neutral = [one for one in votes if one.choice.kind != "preference"]
    for ties in ("drop", "ignore"):
        assert preferences_of(pairs, neutral, ties=ties).preferences == []


def test_a_blank_prompt_makes_no_preference_and_is_reported():
    found = preferences_of([pair(prompt=" ")], [vote()])
    assert found.preferences == []
    assert "the prompt is blank" in found.unusable[0]
