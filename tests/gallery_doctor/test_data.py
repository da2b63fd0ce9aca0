"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
: data."""

import json

import pytest

from tests.gallery_doctor.desk import (
    named,
    write,
)


@pytest.mark.thorough
def test_leaked_test_rows_are_named_in_other_letters_too(examine, desk, tmp_path):
    train = [json.loads(line)["prompt"] for line in (desk / "prompts.jsonl").read_text().splitlines()]
    test = write(tmp_path / "test.jsonl", [{"prompt": f"{text.upper()} "} for text in train[:24]])
    found = examine(
        "reviews.toml",
        f"data.test_prompts.path={test}",
        "evaluation.judge.type=bag_of_words",
        "evaluation.judge.path=x",
    )
    assert found["data.leakage"].verdict == "fault"
    assert "24 of 24 test prompts are among the prompts" in found["data.leakage"].seen


@pytest.mark.thorough
def test_leaked_pairs_are_named_the_other_way_round_too(examine, desk, tmp_path):
    pairs = [json.loads(line) for line in (desk / "preferences.jsonl").read_text().splitlines()]
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs[:16]]
    test = write(tmp_path / "test.jsonl", turned)
    found = examine(
        "reviews.toml",
        "data.preferences.path=preferences.jsonl",
        f"data.test_preferences.path={test}",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )
    assert found["data.leakage"].verdict == "fault"
    assert "16 of 16 test preferences are among the preferences" in found["data.leakage"].seen


@pytest.mark.thorough
def test_demonstrations_whose_eos_is_cut_off_are_named(examine):
    found = examine("reviews.toml", "sft.max_tokens=40")
    assert named(found) == {"data.ends": "fault"}
    assert "0.0% of the demonstrations end with EOS within 40 tokens" in found["data.ends"].seen


def test_eos_that_is_spelt_out_is_named(examine, desk, tmp_path):
    rows = [json.loads(line) for line in (desk / "demonstrations.jsonl").read_text().splitlines()]
    spelt = write(tmp_path / "spelt.jsonl", [{**row, "completion": row["completion"] + "<|eos|>"} for row in rows])
    found = examine("reviews.toml", f"data.demonstrations.path={spelt}")
    assert named(found)["data.spelt_out_eos"] == "warning"
    assert "64 of 64 demonstrations hold the letters '<|eos|>'" in found["data.spelt_out_eos"].seen


def test_responses_that_are_longer_than_ppos_are_named(examine):
    found = examine("reviews.toml", "rollout.max_response_tokens=16")
    assert named(found) == {"data.response_length": "fault"}


def test_copied_demonstrations_are_named(examine, desk, tmp_path):
    lines = (desk / "demonstrations.jsonl").read_text().splitlines()
    copied = tmp_path / "copied.jsonl"
    copied.write_text("\n".join(lines[:32] * 2) + "\n")
    found = examine("reviews.toml", f"data.demonstrations.path={copied}")
    assert named(found) == {"data.demonstrations": "warning"}
    assert "50.0% are repeated" in found["data.demonstrations"].seen


def pairs_recipe(path):
    return (
        "reviews.toml",
        f"data.preferences.path={path}",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )


def test_pairs_that_contradict_each_other_are_named(examine, desk, tmp_path):
    pairs = [json.loads(line) for line in (desk / "preferences.jsonl").read_text().splitlines()]
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs[:32]]
    found = examine(*pairs_recipe(write(tmp_path / "pairs.jsonl", pairs + turned)))
    assert found["data.preferences"].verdict == "warning"
    assert "66.7% of the pairs are there the other way round too" in found["data.preferences"].seen


def test_pairs_that_go_by_length_are_named(examine, desk, tmp_path):
    pairs = [json.loads(line) for line in (desk / "preferences.jsonl").read_text().splitlines()]
    by_length = [
        {**pair, **dict(zip(("rejected", "chosen"), sorted((pair["chosen"], pair["rejected"]), key=len), strict=True))}
        for pair in pairs
    ]
    found = examine(*pairs_recipe(write(tmp_path / "pairs.jsonl", by_length)))
    assert found["data.choice_by_length"].verdict == "warning"
    assert "so a reward model can learn length and little else" in found["data.choice_by_length"].seen


def test_a_bad_row_is_named_with_its_place(examine, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Review of the Blue Door, a pizza place:"}\n{"prompt": ""}\n')
    found = examine("reviews.toml", f"data.prompts.path={rows}")
    assert named(found)["data.prompts"] == "fault"
    assert "rows.jsonl:2" in found["data.prompts"].seen


def test_prompts_that_lose_most_of_their_text_are_named(examine):
    found = examine("reviews.toml", "data.max_prompt_tokens=4")
    assert found["data.lengths"].verdict == "warning"
    assert "data.max_prompt_tokens = 4" in found["data.lengths"].seen
