import json

import pytest

from rlhfkit.config.data import RowsConfig
from rlhfkit.data.preferences import load_preferences
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import (
    export_labels,
    preferences_of,
    read_hh,
    read_preferences,
    write_hh,
    write_preference_rows,
)
from rlhfkit.records import Message
from tests.feedback.label_cases import CHOICES, HOSTILE, chosen, pair, vote, write

TRL = """\
{"prompt": "Why?", "chosen": "Rayleigh.", "rejected": "<b>Magic</b>", "margin": 0.5, "topic": "sky"}
{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello 🎉"}], \
"rejected": [{"role": "assistant", "content": "مرحبا"}]}
"""
HH = (
    r'{"chosen": "\n\nHuman: What is 2+2?\n\nAssistant: 4\n\nHuman: Sure?\n\nAssistant: Yes.",'
    r' "rejected": "\n\nHuman: What is 2+2?\n\nAssistant: 4\n\nHuman: Sure?\n\nAssistant: No\n\nmaybe."}'
    "\n"
)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def found_preferences(labels):
    return [
        (one.prompt.content, one.chosen, one.rejected) for one in preferences_of(labels.pairs, labels.votes).preferences
    ]


def test_golden_preferences_are_read(tmp_path):
    found = read_preferences(write(tmp_path / "x.jsonl", TRL), annotator="trl")
    assert found_preferences(found) == [
        ("Why?", "Rayleigh.", "<b>Magic</b>"),
        ((Message("user", "Hi"),), "Hello 🎉", "مرحبا"),
    ]
    assert [abs(one.choice.strength) for one in found.votes] == [2, 3]  # 0.5 of 4; unknown
    assert found.left_out == {"degrees, read as 3": 1}
    assert {one.annotator for one in found.votes} == {"trl"}
    assert found.pairs[0].settings == {
        "preferences": {"columns": {"margin": 0.5, "topic": "sky"}, "chosen": found.votes[0].choice.preferred}
    }


def test_preferences_go_in_and_out_without_loss(tmp_path):
    found = read_preferences(write(tmp_path / "x.jsonl", TRL))
    result = write_preference_rows(tmp_path / "y.jsonl", found.pairs, found.votes)
    assert rows(tmp_path / "y.jsonl") == [json.loads(line) for line in TRL.splitlines()]
    assert result.num_records == 2


def test_margin_of_the_other_response_does_not_stay(tmp_path):
    found = read_preferences(write(tmp_path / "x.jsonl", TRL))
    side = found.votes[0].choice.preferred
    against = [vote(found.pairs[0].id, str(n), CHOICES[0 if side == "a" else 7]) for n in range(2)]
    write_preference_rows(tmp_path / "y.jsonl", found.pairs[:1], [found.votes[0], *against])
    assert rows(tmp_path / "y.jsonl") == [
        {"topic": "sky", "prompt": "Why?", "chosen": "<b>Magic</b>", "rejected": "Rayleigh."}
    ]


def test_written_preferences_are_read_by_the_loader(tmp_path):
    conversation = (Message("user", "Why?"),)
    pairs = [pair("1"), pair("2", prompt=conversation, response_a=HOSTILE)]
    votes = [*chosen(-4, -2, pair_id="1"), *chosen(1, pair_id="2")]
    write_preference_rows(tmp_path / "x.jsonl", pairs, votes, use_margin=True)
    loaded = load_preferences(RowsConfig(path="x.jsonl"), directory=tmp_path).records
    assert [(one.prompt.content, one.chosen, one.rejected, one.margin) for one in loaded] == [
        ("Why?", "No idea.", "Because.", 0.75),
        (conversation, HOSTILE, "No idea.", 0.25),
    ]


def test_summary_tells_what_the_rows_do_not_hold(tmp_path):
    pairs = [pair(str(number)) for number in range(5)]
    votes = [
        *chosen(3, 3, -1, pair_id="0"),
        vote("1", "ann", CHOICES[0], comment="hm", flags_a=("unsafe", "wrong")),
        *chosen("tie", pair_id="2"),
        *chosen("skip", pair_id="3"),
    ]
    result = write_preference_rows(tmp_path / "x", pairs, votes)
    assert result.num_records == 2
    assert result.left_out == {
        "pairs that were tied": 1,
        "pairs that were skipped": 1,
        "pairs without votes": 1,
        "names of people, sides and times": 4,
        "votes that were not with the majority": 1,
        "degrees": 3,
        "comments": 1,
        "flags": 2,
    }
    assert "degrees" not in write_preference_rows(tmp_path / "x", pairs, votes, use_margin=True).left_out


def test_chosen_is_not_always_on_one_side_and_order_does_not_matter(tmp_path):
    lines = [{"prompt": f"q{number}", "chosen": "good", "rejected": "bad"} for number in range(200)]
    found = read_preferences(write(tmp_path / "x", lines))
    num_a = sum(one.choice.preferred == "a" for one in found.votes)
    assert 70 <= num_a <= 130  # 200 fair flips: 100 ± 4 standard deviations of 7
    turned = [{"prompt": row["prompt"], "chosen": "bad", "rejected": "good"} for row in lines]
    assert read_preferences(write(tmp_path / "x", turned)).pairs == found.pairs


def test_rows_on_the_same_pair_are_votes_of_different_people(tmp_path):
    one = {"prompt": "q", "chosen": "x", "rejected": "y"}
    other = {"prompt": "q", "chosen": "y", "rejected": "x"}
    found = read_preferences(write(tmp_path / "x", [one, one, other]))
    assert len(found.pairs) == 1
    assert [vote.annotator for vote in found.votes] == ["imported", "imported-2", "imported-3"]
    assert found_preferences(found) == [("q", "x", "y")]


def test_parts_are_the_same_for_all_pairs_of_a_prompt(tmp_path):
    lines = [{"prompt": f"q{n % 40}", "chosen": f"x{n}", "rejected": "y"} for n in range(120)]
    found = read_preferences(write(tmp_path / "x", lines))
    parts = {}
    for each in found.pairs:
        assert parts.setdefault(each.prompt, each.part) == each.part
    assert set(parts.values()) == {"train", "test"}


def test_golden_transcripts_are_read(tmp_path):
    found = read_hh(write(tmp_path / "x.jsonl", HH))
    turns = (Message("user", "What is 2+2?"), Message("assistant", "4"), Message("user", "Sure?"))
    assert found_preferences(found) == [(turns, "Yes.", "No\n\nmaybe.")]
    turned = read_hh(tmp_path / "x.jsonl", chosen_is="worse")
    assert found_preferences(turned) == [(turns, "No\n\nmaybe.", "Yes.")]
    assert turned.pairs == found.pairs


def test_transcripts_go_in_and_out_without_loss(tmp_path):
    path = write(tmp_path / "x.jsonl", HH + HH.replace("Yes.", "  <script>\\u0000\\u202e🎉 ").replace("2+2", "3+3"))
    found = read_hh(path)
    result = write_hh(tmp_path / "y.jsonl", found.pairs, found.votes)
    assert rows(tmp_path / "y.jsonl") == rows(path)
    assert result.left_out == {"names of people, sides and times": 2, "degrees": 2}


def test_transcripts_that_part_early_are_whole_conversations(tmp_path):
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    found = read_hh(write(tmp_path / "x", [row]))
    assert found.pairs[0].prompt == ""
    assert {found.pairs[0].response_a, found.pairs[0].response_b} == {
        (Message("user", "a"), Message("assistant", "b")),
        (Message("user", "c"), Message("assistant", "d")),
    }
    assert preferences_of(found.pairs, found.votes).preferences == []
    assert write_hh(tmp_path / "y", found.pairs, found.votes).left_out == {"pairs that make no preference": 1}


def test_what_transcripts_cannot_hold_is_left_out_and_told(tmp_path):
    system = (Message("system", "Be kind."), Message("user", "Hi"))
    pairs = [pair("1"), pair("2", prompt=system), pair("3", response_a="x\n\nHuman: y")]
    votes = [one for each in pairs for one in chosen(3, pair_id=each.id)]
    result = write_hh(tmp_path / "x", pairs, votes)
    assert rows(tmp_path / "x") == [
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No idea."}
    ]
    assert result.left_out["pairs with a turn of the system"] == 1
    assert result.left_out["pairs whose text looks like a turn"] == 1


def test_transcripts_with_details_come_back_as_they_were(tmp_path):
    votes = [*chosen(1, 2, "tie", "skip")]
    export_labels([pair()], votes, tmp_path / "x", format="hh", details=True)
    found = read_hh(tmp_path / "x")
    assert (found.pairs, found.votes) == ([pair()], votes)


def row(**changes):
    return {"prompt": "q", "chosen": "x", "rejected": "y"} | changes


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"prompt": "q", "chosen": "x"}, 'there is no "rejected"; the row has prompt, chosen'),
        (row(chosen=None), 'there is no "chosen"'),
        (row(chosen=True), 'column "chosen" is true'),
        (row(chosen=[{"role": "assistant", "content": "x"}]), "one response is text and the other a list"),
        (row(prompt=None), 'the row has prompt, chosen, rejected; add it as "prompt"'),
        (row(prompt=True), 'column "prompt" is true'),
        (row(margin="much"), "\"margin\" is the text 'much'"),
        (row(margin=True), '"margin" is true'),
        (row(rlhfkit="{"), 'column "rlhfkit" is damaged'),
        (row(rlhfkit="[]"), 'column "rlhfkit" is damaged'),
        (row(rlhfkit=3), 'column "rlhfkit" is damaged'),
        (row(rlhfkit='{"pair": {}, "votes": []}'), "pair: id"),
    ],
)
def test_broken_row_is_named(tmp_path, broken, why):
    path = write(tmp_path / "x.jsonl", f"{json.dumps(row())}\n\n{json.dumps(broken)}\n")
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert str(caught.value).startswith("x.jsonl:3: ")
    assert why in str(caught.value)


def test_text_changed_beside_its_details_is_reported(tmp_path):
    export_labels([pair()], chosen(3), tmp_path / "x", format="preferences", details=True)
    changed = (tmp_path / "x").read_text().replace('"chosen": "Because."', '"chosen": "Since."')
    with pytest.raises(DataError, match='x:1: column "rlhfkit" is of other responses than "chosen" and "rejected"'):
        read_preferences(write(tmp_path / "x", changed))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"chosen": "\n\nHuman: x\n\nAssistant: y"}, 'there is no "rejected"; the row has chosen; add it'),
        (
            {"chosen": "x", "rejected": "\n\nHuman: x\n\nAssistant: y"},
            "no transcript: it begins with 'x'",
        ),
        ({"chosen": [], "rejected": "x"}, 'column "chosen" is empty; expected text'),
        ({"chosen": "", "rejected": "x"}, '"chosen" is no transcript'),
    ],
)
def test_broken_transcript_is_named(tmp_path, broken, why):
    with pytest.raises(DataError) as caught:
        read_hh(write(tmp_path / "x", [broken]))
    assert str(caught.value).startswith("x:1: ")
    assert why in str(caught.value)
