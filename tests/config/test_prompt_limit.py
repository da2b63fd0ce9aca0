"""How long a prompt may be where data.max_prompt_tokens is "auto"."""

import pytest

from rlhfkit.config.recipe import Recipe


def recipe(limit, *, response=256, env=None):
    return Recipe.model_validate(
        {
            "name": "x",
            "stages": ["ppo"],
            "model": {"path": "m"},
            "data": {"prompts": {"path": "p.jsonl"}, **({} if limit is None else {"max_prompt_tokens": limit})},
            "reward": {"type": "function", "function": "a:b"},
            "rollout": {"max_response_tokens": response},
            **({} if env is None else {"env": env}),
        }
    )


@pytest.mark.parametrize(
    ("context", "expected"), [(512, 256), (1024, 768), (4096, 1024), (131_072, 1024), (None, 1024), (257, 1)]
)
def test_auto_is_what_the_context_leaves_beside_a_response(context, expected):
    assert recipe("auto").for_context(context).data.prompt_limit == expected
    assert recipe(None).for_context(context) == recipe("auto").for_context(context)


def test_in_an_environment_auto_is_half_the_context():
    assert recipe("auto", response=32, env={"type": "replay"}).for_context(512).data.prompt_limit == 256
    assert recipe("auto", response=300, env={"type": "replay"}).for_context(512).data.prompt_limit == 212


def test_a_given_limit_is_kept():
    assert recipe(100).for_context(512) == recipe(100)
    assert recipe(100).data.prompt_limit == 100
