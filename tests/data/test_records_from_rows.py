import json
from pathlib import Path

import pytest

from rlhfkit.config.data import ContrastConfig, RowsConfig
from rlhfkit.data import (
    find_overlap,
    load_demonstrations,
    load_preferences,
    load_prompts,
    load_texts,
    write_preferences,
)
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.records import Demonstration, Message, Preference, Prompt

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data are not at {SHARED}")
HH = "pref_hh_rlhf_harmless/test.jsonl.gz"

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
WORSE = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be kind."}
TURNS = (Message("user", "Hi"),)
START = "\n\nHuman: Hi\n\nAssistant:"


def source_of(directory: Path, *rows: dict, **settings) -> RowsConfig:
    (directory / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowsConfig(path=str(directory / "x.jsonl"), columns=settings.pop("columns", {}), **settings)


def strip(record):
    """The record's content, without where it comes from."""
    if isinstance(record, Prompt):
        return record.content
    if isinstance(record, Demonstration):
        return record.prompt.content, record.response
    return record.prompt.content, record.chosen, record.rejected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": " Hi "}, " Hi "),
        ({"prompt": [USER]}, TURNS),
        ({"prompt": [SYSTEM, USER]}, (Message("system", "Be kind."), *TURNS)),
        ({"prompt": [{"role": "prompter", "text": "Hi"}]}, TURNS),
        ({"prompt": "Hi", "completion": "x"}, "Hi"),
        ({"messages": [USER]}, TURNS),
        ({"messages": [USER, ANSWER]}, TURNS),
        ({"messages": [USER, ANSWER, USER]}, (*TURNS, Message("assistant", "Hello."), *TURNS)),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "Hi"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, TURNS),
        ({"chosen": f"{START} a", "rejected": f"{START} a"}, TURNS),
        ({"prompt": None, "messages": [USER], "text": None}, TURNS),
    ],
)
def test_prompt_comes_out_of_every_format(tmp_path, row, expected):
    assert strip(load_prompts(source_of(tmp_path, row)).records[0]) == expected


def test_prompt_keeps_further_columns_and_its_origin(tmp_path):
    source = source_of(tmp_path, {"prompt": "Hi", "completion": "x", "label": 3, "tags": ["a"]})
    prompt = load_prompts(source).records[0]
    assert prompt.columns == {"label": 3, "tags": ["a"]}
    assert prompt.origin == f"{tmp_path}/x.jsonl:1"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hi", "completion": " Hello. \n"}, ("Hi", " Hello. \n")),
        ({"prompt": "Hi", "response": "Hello."}, ("Hi", "Hello.")),
        ({"prompt": [USER], "completion": [ANSWER]}, (TURNS, "Hello.")),
        ({"prompt": [USER], "completion": "Hello."}, (TURNS, "Hello.")),
        ({"prompt": "Hi", "completion": [ANSWER]}, (TURNS, "Hello.")),
        ({"messages": [USER, ANSWER]}, (TURNS, "Hello.")),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, ("Hi", "a")),
    ],
)
def test_demonstration_comes_out_of_every_format(tmp_path, row, expected):
    assert strip(load_demonstrations(source_of(tmp_path, row)).records[0]) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}, ("Hi", "Hello.", "What?")),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}, (TURNS, "Hello.", "What?")),
        ({"prompt": [USER], "chosen": "Hello.", "rejected": "What?"}, (TURNS, "Hello.", "What?")),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, (TURNS, "Hello.", "What?")),
        ({"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, (TURNS, "Hello.", "What?")),
        (
            {"prompt": "Hi", "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, WORSE]},
            ((Message("system", "Be kind."), *TURNS), "Hello.", "What?"),
        ),
        ({"chosen": f"{START} Hello.", "rejected": f"{START} What?\n"}, (TURNS, "Hello.", "What?")),
        (
            {"chosen": f"{START} Well\n\nHuman: So? {START} a", "rejected": f"{START} Well\n\nHuman: So? {START} b"},
            ((*TURNS, Message("assistant", "Well"), Message("user", "So?\n\nHi")), "a", "b"),
        ),
        ({"chosen": f"{START} Human: no\n\nmore", "rejected": f"{START} b"}, (TURNS, "Human: no\n\nmore", "b")),
    ],
)
def test_preference_comes_out_of_every_format(tmp_path, row, expected):
    assert strip(load_preferences(source_of(tmp_path, row)).records[0]) == expected


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.5), (2, 2.0), ("1.5", 1.5), ("", None), (None, None)])
def test_margin_is_a_number_or_nothing(tmp_path, margin, expected):
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": margin}
    assert load_preferences(source_of(tmp_path, row)).records[0].margin == expected


PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (load_prompts, {"prompt": " \n"}, "the prompt is empty"),
        (load_prompts, {"prompt": []}, 'column "prompt" is empty; expected a list of messages'),
        (load_prompts, {"prompt": [{"role": "user", "content": " "}]}, "the prompt is empty"),
        (load_prompts, {"messages": [ANSWER]}, "the prompt is empty"),
        (load_prompts, {"messages": "Hi"}, "column \"messages\" is the text 'Hi'; expected a list of messages"),
        (load_prompts, {"prompt": [USER, ANSWER]}, "the prompt ends with a turn of the assistant; expected the user"),
        (load_prompts, {"prompt": ["Hi"]}, r"prompt\[1\] is the text 'Hi'; expected a message"),
        (load_prompts, {"prompt": [{"role": "tool", "content": "x"}]}, r"prompt\[1\] has the role 'tool'; expected"),
        (load_prompts, {"prompt": [{"role": "user"}]}, r'"prompt\[1\].content" is empty; expected text'),
        (load_prompts, {"text": "A whole text."}, r"nothing says where the prompt ends; .*beginning_words"),
        (load_demonstrations, {"prompt": "Hi"}, 'no response; the row has prompt; expected "completion"'),
        (load_demonstrations, {"prompt": "Hi", "completion": " "}, "the response is empty"),
        (
            load_demonstrations,
            {"prompt": "Hi", "completion": True},
            'column "completion" is true; expected text',
        ),
        (load_demonstrations, {"prompt": "Hi", "completion": [USER]}, "ends with a turn of the user"),
        (load_demonstrations, {"prompt": "Ho", "completion": [USER, ANSWER]}, "before the response are not the prompt"),
        (load_demonstrations, {"messages": [USER]}, "no response; the row has messages"),
        (load_preferences, {"prompt": "Hi", "rejected": "b"}, 'no column "chosen"; the row has prompt, rejected'),
        (load_preferences, {"chosen": "a", "rejected": "b"}, 'no column "prompt", and "chosen" is no dialogue'),
        (load_preferences, {**PAIR, "chosen": "b"}, "chosen and rejected are equal"),
        (load_preferences, {**PAIR, "chosen": ""}, "the chosen response is empty"),
        (load_preferences, {**PAIR, "rejected": "\n"}, "the rejected response is empty"),
        (load_preferences, {**PAIR, "prompt": ""}, "the prompt is empty"),
        (load_preferences, {**PAIR, "margin": "much"}, "column \"margin\" is 'much'; expected a finite number"),
        (load_preferences, {**PAIR, "margin": float("inf")}, 'column "margin" is inf'),
        (load_preferences, {**PAIR, "chosen": [USER, ANSWER]}, "answer different prompts"),
        (
            load_preferences,
            {"chosen": [USER], "rejected": [USER]},
            "ends with a turn of the user; expected the assistant",
        ),
        (
            load_preferences,
            {"chosen": [SYSTEM, USER, ANSWER], "rejected": [USER, WORSE]},
            "part at turn 1 of 3 and 2; expected two dialogues that differ in their last turn only",
        ),
        (
            load_preferences,
            {"chosen": f"{START} a\n\nHuman: b\n\nAssistant: c", "rejected": f"{START} z\n\nHuman: b\n\nAssistant: c"},
            "part at turn 2 of 4 and 4",
        ),
        (load_texts, {"prompt": "Hi"}, 'no column "text"; the row has prompt'),
        (load_texts, {"text": " "}, "the text is empty"),
    ],
)
def test_bad_row_says_what_is_wrong(tmp_path, load, row, message):
    with pytest.raises(DataError, match=message) as caught:
        load(source_of(tmp_path, row))
    assert "x.jsonl:1: " in str(caught.value)


def test_beginning_and_rest_reproduce_the_line(tmp_path):
    (tmp_path / "x.txt").write_text("  one two  three four five six \nun deux trois\n")
    source = RowsConfig(path="x.txt", beginning_words=(2, 3))
    demonstrations = load_demonstrations(source, directory=tmp_path, seed=5).records
    for demonstration, line in zip(demonstrations, ["one two  three four five six", "un deux trois"], strict=True):
        assert demonstration.prompt.content + demonstration.response == line
        assert demonstration.response.startswith(" ")
        assert len(demonstration.prompt.content.split()) in (2, 3)
    assert demonstrations[1].prompt.content == "un deux"  # of three words, one has to be left
    assert [d.prompt for d in demonstrations] == load_prompts(source, directory=tmp_path, seed=5).records
    assert load_texts(source, directory=tmp_path).records == ["one two  three four five six", "un deux trois"]


def test_beginning_depends_on_seed_and_line_and_not_on_other_rows(tmp_path):
    line = " ".join("abcdefghijklmnopqrstuvwxyz") + "\n"
    path = tmp_path / "x.txt"
    path.write_text(line * 40)

    def lengths(rows: str, seed: int) -> list[int]:
        source = RowsConfig(path="x.txt", beginning_words=(1, 20), rows=rows)
        return [len(prompt.content.split()) for prompt in load_prompts(source, directory=tmp_path, seed=seed).records]

    every = lengths(":", 0)
    assert lengths("-10:", 0) == every[-10:]
    assert lengths(":", 1) != every
    assert min(every) >= 1
    assert max(every) <= 20
    assert len(set(every)) > 8


def test_line_that_is_too_short_for_its_beginning_is_a_bad_row(tmp_path):
    (tmp_path / "x.txt").write_text("one two three\none two\n")
    source = RowsConfig(path="x.txt", beginning_words=(2, 4))
    with pytest.raises(DataError, match=r"x.txt:2: 2 words; beginning_words = \[2, 4\] needs at least 3"):
        load_demonstrations(source, directory=tmp_path)
    assert len(load_demonstrations(source, directory=tmp_path, on_bad_row="skip").records) == 1


def contrast(chosen: str, rejected: str) -> ContrastConfig:
    return ContrastConfig(type="contrast", chosen=RowsConfig(path=chosen), rejected=RowsConfig(path=rejected))


def test_contrast_pairs_each_text_at_most_once_in_random_order(tmp_path):
    (tmp_path / "good.txt").write_text("".join(f"good {number}\n" for number in range(30)))
    (tmp_path / "bad.txt").write_text("".join(f"bad {number}\n" for number in range(20)))
    loaded = load_preferences(contrast("good.txt", "bad.txt"), directory=tmp_path, seed=3)
    pairs = loaded.records
    assert {pair.rejected for pair in pairs} == {f"bad {number}" for number in range(20)}
    assert len({pair.chosen for pair in pairs}) == len(pairs) == 20
    assert all(pair.chosen.startswith("good") and pair.prompt.content == "" for pair in pairs)
    numbers = [(int(pair.chosen.split()[1]), int(pair.rejected.split()[1])) for pair in pairs]
    assert numbers != sorted(numbers)
    assert any(one != other for one, other in numbers)
    one, other = numbers[0]
    assert pairs[0].prompt.origin == f"good.txt:{one + 1} against bad.txt:{other + 1}"
    assert load_preferences(contrast("good.txt", "bad.txt"), directory=tmp_path, seed=3).records == pairs
    assert load_preferences(contrast("good.txt", "bad.txt"), directory=tmp_path, seed=4).records != pairs
    assert [source.path for source in loaded.sources] == ["good.txt", "bad.txt"]


def test_contrast_leaves_out_a_text_against_itself(tmp_path):
    (tmp_path / "good.txt").write_text("same\n")
    (tmp_path / "bad.txt").write_text("same\n")
    with pytest.raises(DataError, match=r"no pair is left: good.txt:1 against bad.txt:1"):
        load_preferences(contrast("good.txt", "bad.txt"), directory=tmp_path)


@pytest.mark.parametrize("load", [load_prompts, load_demonstrations, load_texts])
def test_contrast_makes_preferences_only(load):
    with pytest.raises(DataError, match='type = "contrast" makes preferences'):
        load(contrast("good.txt", "bad.txt"))


def test_overlap_counts_the_test_prompts_that_were_trained_on():
    train = [Prompt("a"), Prompt(TURNS), Prompt("c")]
    assert find_overlap(train, [Prompt("a", {"x": 1}, "test:1"), Prompt(TURNS), Prompt("d"), Prompt("a")]) == 3
    assert find_overlap(train, []) == 0
    assert find_overlap([Prompt("Say  it"), Prompt("")], [Prompt("say it\n"), Prompt("")]) == 1


def test_written_preferences_are_read_back_identically(tmp_path):
    path = tmp_path / "out.jsonl"
    written = [
        Preference(Prompt("Naïve?\u2028", {"label": 1}, f"{path}:1"), " a\n", "b  ", 0.5),
        Preference(Prompt((Message("system", "s"), Message("user", "Hi\n")), {}, f"{path}:2"), "y", "z\r\n"),
    ]
    write_preferences(path, written)
    assert load_preferences(RowsConfig(path=str(path))).records == written


@needs_shared
def test_real_dialogues_of_anthropic_are_read_and_the_odd_ones_named():
    loaded = load_preferences(RowsConfig(path=HH), directory=SHARED, on_bad_row="skip")
    assert len(loaded.records) == 2303
    bad = {int(message.split(":")[1]): message for message in loaded.skipped}
    assert sorted(bad) == [87, 517, 926, 1104, 1255, 1689, 1951, 1953, 2037]
    assert all("the chosen response is empty" in bad[line] for line in (87, 517, 926, 1104))
    assert "part at turn 4 of 5 and 4" in bad[1255]
    for preference in loaded.records:
        roles = [turn.role for turn in preference.prompt.content]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    with pytest.raises(DataError, match=r":87: the chosen response is empty; .*\(9 bad rows of 2312; correct them"):
        load_preferences(RowsConfig(path=HH), directory=SHARED)


@needs_shared
def test_prompts_and_demonstrations_come_out_of_real_preferences():
    assert len(load_prompts(RowsConfig(path=HH), directory=SHARED, on_bad_row="skip").records) == 2307
    assert len(load_demonstrations(RowsConfig(path=HH), directory=SHARED, on_bad_row="skip").records) == 2303


@needs_shared
def test_real_pairs_of_open_assistant_are_read():
    loaded = load_preferences(RowsConfig(path="pref_oasst_en100/pairs.jsonl.gz"), directory=SHARED)
    assert len(loaded.records) == 732
    assert loaded.records[0].prompt.columns == {"rank_chosen": 0, "rank_rejected": 1}


@needs_shared
def test_real_preferences_survive_writing_and_reading(tmp_path):
    before = load_preferences(RowsConfig(path=HH), directory=SHARED, on_bad_row="skip").records
    write_preferences(tmp_path / "x.jsonl", before)
    after = load_preferences(RowsConfig(path="x.jsonl"), directory=tmp_path).records
    assert [strip(record) for record in after] == [strip(record) for record in before]


def test_rows_of_a_prompt_are_all_in_one_share_and_shares_make_up_the_whole(tmp_path):
    rows = [{"prompt": f"p{number % 50}", "completion": f"c{number}"} for number in range(400)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load(share):
        return load_demonstrations(RowsConfig(path="x.jsonl", prompt_share=share), directory=tmp_path).records

    first, second, third = load(":40%"), load("40%:80%"), load("80%:")
    prompts = [{record.prompt.content for record in part} for part in (first, second, third)]
    assert [one & other for one, other in ((prompts[0], prompts[1]), (prompts[1], prompts[2]))] == [set(), set()]
    assert sorted(record.response for part in (first, second, third) for record in part) == sorted(
        row["completion"] for row in rows
    )
    assert [record.response for record in first] == sorted(
        (record.response for record in first), key=lambda text: int(text[1:])
    )
    assert 8 < len(prompts[0]) < 32 and len(first) == 8 * len(prompts[0])


def test_prompt_share_goes_by_the_first_bytes_of_sha256(tmp_path):
    # printf '0\x1dgo.' | sha256sum begins with c6a8: 0xc6a8 / 0x10000 = 0.7760
    (tmp_path / "x.jsonl").write_text('{"prompt": "Go."}\n')
    assert len(load_prompts(RowsConfig(path="x.jsonl", prompt_share="77%:78%"), directory=tmp_path).records) == 1
    for outside in (":77%", "78%:"):
        with pytest.raises(DataError, match=f'prompt_share = "{outside}" leaves none of the 1 rows; give rows of more'):
            load_prompts(RowsConfig(path="x.jsonl", prompt_share=outside), directory=tmp_path)


def test_whole_texts_have_no_prompt_to_part_by(tmp_path):
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="whole texts have none; use rows"):
        load_texts(RowsConfig(path="x.txt", prompt_share=":50%"), directory=tmp_path)


@pytest.mark.parametrize("share", ["50", ":101%", "-10%:", "a%:", ""])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="prompt_share"):
        RowsConfig(path="x.jsonl", prompt_share=share)


def test_one_per_prompt_keeps_the_first_row_and_a_prompt_all_references(tmp_path):
    rows = [("Go.", "Va !"), ("Hi.", "Salut !"), ("Go.", "Marche."), ("Go.", " Va ! ")]
    source = source_of(tmp_path, *({"prompt": one, "completion": other} for one, other in rows), one_per_prompt=True)
    prompts = load_prompts(source, directory=tmp_path).records
    assert [(prompt.content, prompt.references) for prompt in prompts] == [
        ("Go.", ("Va !", "Marche.")),
        ("Hi.", ("Salut !",)),
    ]
    demonstrations = load_demonstrations(source, directory=tmp_path).records
    assert [demonstration.response for demonstration in demonstrations] == ["Va !", "Salut !"]


def test_a_prompt_without_a_response_has_no_references(tmp_path):
    (prompt,) = load_prompts(source_of(tmp_path, {"prompt": "Go."}, one_per_prompt=True), directory=tmp_path).records
    assert prompt.references == ()


def test_blanks_and_capitals_make_no_other_prompt(tmp_path):
    rows = [{"prompt": text} for word in range(40) for text in (f"Say {word}", f"say  {word}\n", f"SAY {word} ")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = [
        {" ".join(prompt.content.split()).lower() for prompt in load_prompts(source, directory=tmp_path).records}
        for source in (RowsConfig(path="x.jsonl", prompt_share=share) for share in (":70%", "70%:"))
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40
