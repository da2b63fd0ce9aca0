"""Responses and scores that come from elsewhere make the same experience as those that a rollout collects."""

from dataclasses import replace

import pytest
import torch

from rlhfkit.config.ppo import PpoConfig
from rlhfkit.errors import DataError, RewardError
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.given import GivenRollout
from rlhfkit.training.checkpoint import trainable_tensors
from rlhfkit.training.ppo import run_iteration
from rlhfkit.training.preflight import check_first_experience
from tests.training import tiny


def config(**changes):
    return PpoConfig(**{"rollout_episodes": 8, "minibatch_episodes": 4, "epochs": 2, "iterations": 3, **changes})


def given_trainer(**changes):
    trainer = tiny.trainer(config(**changes))
    trainer.rollout = GivenRollout(trainer.rollout)
    return trainer


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainable_tensors(trainer.policy).items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_sampled_and_comes_back_trains_to_the_same_bits_as_collecting_it():
    collected = tiny.trainer(config())
    trainer = given_trainer()
    for iteration in range(2):
        run_iteration(collected)
        prompts = trainer.rollout.own.prompts_of(iteration)
        texts = trainer.rollout.sample(prompts, iteration=iteration)
        trainer.rollout.give(prompts, texts, [float(text.count("a")) for text in texts])
        run_iteration(trainer)
    assert equal(weights(trainer), weights(collected))
    assert not equal(weights(trainer), weights(tiny.trainer(config())))


def test_a_second_sample_within_an_iteration_makes_other_draws():
    trainer = given_trainer()
    prompts = trainer.rollout.own.prompts[:1] * 8
    first, second = (trainer.rollout.sample(prompts, iteration=0) for _ in range(2))
    assert first != second
    assert len(set(first)) > 1


def test_a_text_that_was_not_sampled_is_encoded_and_ends_with_eos():
    trainer = given_trainer()
    (prompt,) = trainer.rollout.own.prompts[:1]
    trainer.rollout.give([prompt], ["abc"], [1.0])
    experience = trainer.rollout.collect(0, kl_coef=0.0)
    # "a" is token 2 of the tiny tokenizer, and so on; EOS is 1.
    assert experience.inputs.ids[0, len(prompt.ids) :].tolist() == [2, 3, 4, 1]
    assert experience.metrics["eos_rate"] == 1.0
    assert "sampler/logprob_max_difference" not in experience.metrics


def test_its_old_logprobs_are_those_of_the_policy():
    trainer = given_trainer()
    prompts = trainer.rollout.own.prompts[:2]
    trainer.rollout.give(prompts, ["abc", "l"], [1.0, 0.0])
    experience = trainer.rollout.collect(0, kl_coef=0.0)
    model = trainer.policy.language_model.causal_lm
    for row, (prompt, response) in enumerate(zip(prompts, ([2, 3, 4, 1], [13, 1]), strict=True)):
        ids = torch.tensor([[*prompt.ids, *response]])
        logits = model(ids).logits[0, len(prompt.ids) - 1 : -1].double()
        logits[:, tiny.PAD] = -torch.inf
        expected = logits.log_softmax(-1)[range(len(response)), response]
        found = experience.old_logprobs[row, : len(response)].double()
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_first_checks_hold_without_the_samplers_logprobs():
    trainer = given_trainer()
    trainer.rollout.give(trainer.rollout.own.prompts[:2], ["abc", "l"], [1.0, 0.0])
    experience = trainer.rollout.collect(0, kl_coef=0.0)
    reference = trainer.rollout.own.reference
    measured = check_first_experience(experience, trainer.policy, reference, min_eos_rate=0.5)
    assert "preflight/sampler" not in measured and measured["preflight/ratio"] < 1e-4


def test_scores_that_do_not_fit_are_refused():
    rollout = given_trainer().rollout
    with pytest.raises(RewardError, match="1 score for 2 responses"):
        rollout.give(rollout.own.prompts[:2], ["a", "b"], [1.0])


def with_spaces(rollout, monkeypatch):
    """Have the rollout sample responses with white space around them, as models do."""
    scored = rollout.own.scored_texts
    spaced = lambda *given: [replace(each, response=f" {each.response}\n") for each in scored(*given)]  # noqa: E731
    monkeypatch.setattr(rollout.own, "scored_texts", spaced)


def test_a_stripped_response_is_learnt_with_the_tokens_that_were_sampled(monkeypatch):
    exact, stripped = given_trainer(), given_trainer()
    for trainer, change in ((exact, lambda text: text), (stripped, str.strip)):
        with_spaces(trainer.rollout, monkeypatch)
        prompts = trainer.rollout.own.prompts_of(0)
        texts = trainer.rollout.sample(prompts, iteration=0)
        trainer.rollout.give(prompts, [change(text) for text in texts], [float(len(text)) for text in texts])
        run_iteration(trainer)
    assert equal(weights(exact), weights(stripped))


def test_a_stripped_response_that_may_be_either_of_two_is_encoded(monkeypatch):
    trainer = given_trainer()
    rollout, (prompt,) = trainer.rollout, trainer.rollout.own.prompts[:1]
    for text in (" abc", "abc "):
        rollout._remember((tuple(prompt.ids), text), Response([2, 3, 4, 5], [], "length"))
    rollout.give([prompt], ["abc"], [1.0])
    assert rollout.collect(0, kl_coef=0.0).inputs.ids[0, len(prompt.ids) :].tolist() == [2, 3, 4, 1]


def test_a_response_beyond_the_limit_is_refused_with_what_differs_from_the_sample():
    rollout = given_trainer().rollout
    prompts = rollout.own.prompts[:2]
    words = r"responses\[1\], 'abcdefgh', has 9 tokens with its EOS, and rollout.max_response_tokens is 8; "
    with pytest.raises(DataError, match=f"{words}no response was sampled to this very prompt"):
        rollout.give(prompts, ["a", "abcdefgh"], [1.0, 2.0])
    rollout._remember((tuple(prompts[1].ids), "abcxefgh"), Response([2], [], "length"))
    nearest = r"it is not what sample\(\) gave to this prompt \(nearest: 'abcxefgh', the same up to letter 3\)"
    with pytest.raises(DataError, match=words + nearest):
        rollout.give(prompts, ["a", "abcdefgh"], [1.0, 2.0])


def test_only_so_many_responses_are_remembered(monkeypatch):
    monkeypatch.setattr("rlhfkit.rollout.given.MOST_REMEMBERED", 3)
    rollout = given_trainer().rollout
    for _ in range(4):
        rollout.sample(rollout.own.prompts, iteration=0)
    assert len(rollout._sampled) == sum(map(len, rollout._by_stripped.values())) == 3
