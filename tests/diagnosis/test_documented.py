"""The documents' tables of rules and of healthy ranges are those of the code."""

import re
from functools import cache
from pathlib import Path

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.diagnosis import PPO_RULES, PRETRAIN_RULES, REWARD_MODEL_RULES, SUPERVISED_RULES, limits
from tests.diagnosis.test_remedies import RECIPES, remedies_of

DOCS = Path(__file__).parents[2] / "docs"


def rows_of_page(page):
    """First cell → the other cells, of all tables of a page."""
    lines = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


@cache
def settings_by_rule():
    """Rule → the settings that its remedies change, in any of the recipes."""
    recipes = [load_recipe(name, list(overrides)).recipe for name, overrides in RECIPES.values()]
    settings = {}
    for recipe in recipes:
        for name, remedy in remedies_of(recipe):
            settings.setdefault(name, set()).add(remedy.setting)
    return settings


@pytest.mark.parametrize("rule", PPO_RULES, ids=lambda rule: rule.name)
def test_a_rule_of_ppo_stands_in_the_documents_as_it_is(rule):
    when, turn = rows_of_page("diagnose.md")[f"`{rule.name}`"]
    assert when == rule.when
    settings = settings_by_rule().get(rule.name, set())
    assert all(f"`{setting}`" in turn for setting in settings), (settings, turn)


OF_OTHER_STAGES = dict.fromkeys([*PRETRAIN_RULES, *SUPERVISED_RULES, *REWARD_MODEL_RULES])


@pytest.mark.parametrize("rule", OF_OTHER_STAGES, ids=lambda rule: rule.name)
def test_a_rule_of_the_other_stages_stands_in_the_documents(rule):
    _, when = rows_of_page("diagnose.md")[f"`{rule.name}`"]
    assert rule.when in when


def test_usual_ranges_are_those_of_the_code():
    rows = rows_of_page("settings.md")
    low, high = limits.USUAL_CLIP_FRACTION
    assert rows["`ppo/clip_fraction`"][1] == f"{low:g} to {high:g}"
    assert f"below about {limits.USUAL_APPROX_KL:g}" in rows["`ppo/approx_kl`"][1]
    assert f"{limits.TEMPERATURES[0]:g} to {limits.TEMPERATURES[1]:g}" in rows["`rollout/temperature`"][1]
    (single, _), (half, _) = limits.ROUNDING_NATS["float32"], limits.ROUNDING_NATS["bfloat16"]
    assert f"at most {single:g} in float32, {half:g} in bfloat16" in rows["`sampler/logprob_max_difference`"][1]
    assert f"below {single:g} in float32" in rows["`ppo/ratio_first_epoch_max_deviation`"][1]


def sentences_of(page):
    return " ".join((DOCS / page).read_text(encoding="utf-8").split())


def test_limits_of_the_first_checks_are_those_of_the_code():
    (single, mean), (half, half_mean) = limits.ROUNDING_NATS["float32"], limits.ROUNDING_NATS["bfloat16"]
    said = sentences_of("method.md")
    assert f"in float32, {single:g} nats for a token and {mean:g} in the mean; in bfloat16, {half:g} and" in said
    assert f"; in bfloat16, {half:g} and {half_mean:g}." in said
    (single, mean), (half, half_mean) = (limits.ENGINE_ROUNDING_NATS[name] for name in ("float32", "bfloat16"))
    said = sentences_of("vllm.md")
    assert f"{single:g} nats for a token and {mean:g} in the mean in float32, {half:g} and {half_mean:g} in bf" in said


def test_limits_of_the_doctor_are_those_of_the_code():
    said = sentences_of("doctor.md")
    assert f"{limits.SOMEWHAT_LENGTH:g} is a warning, {limits.LITTLE_ELSE:g} a fault" in said
    assert limits.LEAK_SHARE == 1 / 20 and "up to one in twenty may be chance" in said
