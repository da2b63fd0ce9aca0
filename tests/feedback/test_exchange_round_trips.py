"""What goes out comes back, for the formats that hold everything."""

import pytest
from hypothesis import given, settings

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import export_labels, import_labels, preferences_of
from rlhfkit.records import Message
from tests.feedback.label_cases import CHOICES, HOSTILE, chosen, labels, pair, vote

LOSSLESS = [
    ("rlhfkit", "rlhfkit"),
    ("argilla", "argilla"),
    ("argilla-nested", "argilla"),
    ("label-studio", "label-studio"),
]


@pytest.mark.parametrize(("written", "read"), LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(drawn=labels())
def test_labels_come_back_as_they_were(tmp_path_factory, written, read, drawn):
    pairs, votes = drawn
    path = tmp_path_factory.getbasetemp() / f"{written}.json"
    result = export_labels(pairs, votes, path, format=written)
    assert result.num_records == len(pairs)
    found = import_labels(path, format=read)
    assert found.pairs == pairs
    assert found.votes == votes
    assert found.left_out == {}


@settings(max_examples=40, deadline=None)
@given(drawn=labels())
def test_preferences_with_details_come_back_as_they_were(tmp_path_factory, drawn):
    pairs, votes = drawn
    path = tmp_path_factory.getbasetemp() / "preferences.jsonl"
    wanted = preferences_of(pairs, votes)
    export_labels(pairs, votes, path, format="preferences", details=True)
    if not wanted.preferences:
        assert path.read_bytes() == b""
        return
    found = import_labels(path, format="preferences")
    assert found.pairs == [each for each in pairs if each.id in wanted.pair_ids]
    assert {one.id: one for one in found.votes} == {one.id: one for one in votes if one.pair_id in wanted.pair_ids}
    assert preferences_of(found.pairs, found.votes).preferences == wanted.preferences


@pytest.mark.parametrize(("written", "read"), LOSSLESS)
def test_hostile_content_survives(tmp_path, written, read):
    pairs = [pair(HOSTILE, HOSTILE, HOSTILE, HOSTILE + "2", origin=HOSTILE)]
    votes = [vote(HOSTILE, HOSTILE, CHOICES[0], comment=HOSTILE, id=HOSTILE)]
    export_labels(pairs, votes, tmp_path / "x", format=written)
    found = import_labels(tmp_path / "x", format=read)
    assert (found.pairs, found.votes) == (pairs, votes)


@pytest.mark.parametrize(("written", "read"), LOSSLESS)
def test_an_answer_of_the_letters_nan_is_no_missing_value(tmp_path, written, read):
    pairs = [pair("p", response_a="nan", response_b="NaN"), pair("q", "?", said("NAN"), said("nan"))]
    export_labels(pairs, [], tmp_path / "x", format=written)
    assert import_labels(tmp_path / "x", format=read).pairs == pairs


def said(text):
    return (Message("user", "?"), Message("assistant", text))


def test_part_and_rounds_choose_what_is_written(tmp_path):
    pairs = [pair("1", part="test"), pair("2", round=2), pair("3")]
    votes = [one for each in pairs for one in chosen(3, pair_id=each.id)]
    export_labels(pairs, votes, tmp_path / "x", format="rlhfkit", part="train", rounds=[2])
    found = import_labels(tmp_path / "x", format="rlhfkit")
    assert found.pairs == [pairs[1]]
    assert found.votes == [votes[1]]


def test_vote_without_its_pair_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(DataError, match='on the pair "lost", which is not there'):
        export_labels([pair()], [vote("lost")], tmp_path / "x", format="rlhfkit", part="train")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", ["rlhfkit", "argilla", "label-studio", "preferences", "hh"])
def test_file_stays_as_it_was_where_writing_fails(tmp_path, written):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(DataError, match=r"half a character, \\ud83d"):
        export_labels([pair(response_a="\ud83d")], chosen(3), path, format=written)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_settings_that_are_no_json_are_refused(tmp_path):
    for value in (object(), float("nan"), {1, 2}):
        with pytest.raises(DataError, match='settings of the pair "p" are no JSON'):
            export_labels([pair(settings={"x": value})], [], tmp_path / "x", format="rlhfkit")
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"cannot be written .*fix the path"):
        export_labels([pair()], [], tmp_path / "no" / "x", format="rlhfkit")


def test_unknown_format_is_reported_with_those_that_exist(tmp_path):
    with pytest.raises(DataError, match='format "csv" is unknown; expected one of rlhfkit, preferences, hh'):
        export_labels([], [], tmp_path / "x", format="csv")
    with pytest.raises(DataError, match='format "csv" is unknown'):
        import_labels(tmp_path / "x", format="csv")
    with pytest.raises(DataError, match='"hh" has no margin'):
        export_labels([], [], tmp_path / "x", format="hh", use_margin=True)
