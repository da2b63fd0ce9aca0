"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
: rewards."""

import pytest

from tests.gallery_doctor.desk import named


def test_a_reward_that_the_model_seldom_reaches_is_reported_from_one_that_is_constant(examine):
    found = examine("reviews.toml", "reward={type='match'}", 'stages=["ppo"]', "evaluation.num_prompts=1")
    assert found["reward.trial"].verdict == "fault"  # the rows give no right response
    rows = ("data.prompts.path=demonstrations.jsonl", "ppo.min_eos_rate=0")
    found = examine("reviews.toml", "reward={type='match'}", 'stages=["ppo"]', *rows)
    assert named(found) == {"reward.scores": "warning"}
    assert "while responses of the data score 0 to 1" in found["reward.scores"].seen


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("function", "name", "words"),
    [
        ("length", "reward.length", "the longer, the better, and hardly anything else counts"),
        ("brevity_of_words", "reward.length", "the shorter, the better, and hardly anything else counts"),
        ("always", "reward.scores", "all 16 responses of the model score 0.5, so there is nothing to learn"),
        ("nan", "reward.trial", "returned nan for response 0"),
        ("nan_where_long", "reward.scores", "scores are not finite"),
    ],
)
def test_a_broken_reward_is_named(examine, function, name, words):
    found = examine("reviews.toml", f"reward.function=gallery_rewards:{function}")
    assert named(found) == {name: "fault"}
    assert words in found[name].seen
    assert found["model.padding"].verdict == "ok"  # the model is looked at all the same


def test_a_reward_of_the_wrong_sign_is_named_by_peoples_pairs(examine):
    found = examine(
        "reviews.toml",
        "reward.function=gallery_rewards:blame",
        "data.preferences.path=preferences.jsonl",
        "data.test_preferences.path=test_preferences.jsonl",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )
    assert named(found) == {"reward.accuracy": "fault"}
    assert "it prefers what people rejected" in found["reward.accuracy"].seen


def test_a_reward_that_knows_no_more_than_a_coin_is_named(examine):
    found = examine(
        "reviews.toml",
        "reward.function=gallery_rewards:coin",
        "data.preferences.path=preferences.jsonl",
        "data.test_preferences.path=test_preferences.jsonl",
        'stages=["sft", "reward_model", "ppo", "evaluate"]',
    )
    assert named(found) == {"reward.accuracy": "warning"}
    assert "not clearly better than a coin" in found["reward.accuracy"].seen


def test_penalties_that_hide_the_reward_are_named(examine):
    found = examine("chat.toml", "rollout.max_response_tokens=24", "ppo.missing_eos_score=-1")
    assert named(found) == {"reward.penalties": "warning"}
    assert "after clip_score and penalties all 16 are -1" in found["reward.penalties"].seen


def test_a_reward_is_tried_on_the_datas_texts_where_no_model_can_answer(examine):
    scratch = 'model={type="scratch", context_tokens=192}'
    stages = 'stages=["pretrain", "sft", "ppo", "evaluate"]'
    texts = 'data.texts={type="grammar", num_rows=32}'
    assert named(examine("reviews.toml", scratch, stages, texts)) == {}
    found = examine("reviews.toml", scratch, stages, texts, "reward.function=gallery_rewards:length")
    assert named(found) == {"reward.length": "fault"}
    found = examine("reviews.toml", scratch, stages, texts, "reward.function=gallery_rewards:always")
    assert named(found) == {"reward.scores": "fault"}
