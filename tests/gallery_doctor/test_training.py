"""A gallery of broken set-ups, each of which doctor names rightly, and of healthy ones, in which it names nothing.

The model is tiny, and has learnt to write the grammar's reviews, so that it is no stranger to its own texts.
: training."""

import pytest
import torch

from rlhfkit.doctor.first_rollout import examine_numbers, examine_temperature, try_prompts
from rlhfkit.models.language import TextPolicy
from rlhfkit.models.policy import PolicyOutput
from rlhfkit.records import Prompt
from rlhfkit.rollout.generation import generate
from tests import tiny

PROMPTS = ("a", "Once upon a time", "be", "There was")


@pytest.fixture
def language_model(directory_of):
    return tiny.load(directory_of("llama"))


def trial_of(model, *, policy=None, temperature=1.0, claimed=None):
    """A trial of `model`, whose recipe says `claimed` where its policy works at `temperature`."""
    policy = policy or TextPolicy(model, None, temperature=temperature)
    settings = tiny.RolloutConfig(max_response_tokens=12, temperature=claimed or temperature)
    return try_prompts(
        policy,
        lambda sequences: model.logprobs(sequences, temperature=policy.temperature),
        [model.encoder.encode(Prompt(text), max_tokens=24) for text in PROMPTS],
        reward=None,
        rollout=settings,
        ppo=tiny.PpoConfig(),
        seed=0,
    )


def verdicts(findings):
    return {finding.name: finding.verdict for finding in findings}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_healthy_sampling_is_not_accused(language_model, temperature):
    trial = trial_of(language_model, temperature=temperature)
    assert set(verdicts([*examine_numbers(trial), *examine_temperature(trial)]).values()) == {"ok"}


def test_dropout_that_is_on_is_named(language_model):
    generator = torch.Generator().manual_seed(0)

    def drop(module, arguments, output):
        return output * (torch.rand(output.shape, generator=generator) > 0.1)

    language_model.causal_lm.model.layers[0].mlp.register_forward_hook(drop)
    found = list(examine_numbers(trial_of(language_model)))
    assert verdicts(found)["model.dropout"] == "fault"
    assert [finding.name for finding in found if finding.verdict == "fault"] == ["model.dropout"]
    assert "is dropout on?" in found[0].seen


class SeesPadding(TextPolicy):
    """A policy whose logprobs depend on how much padding stands in its rows."""

    def evaluate(self, inputs):
        output = super().evaluate(inputs)
        padding = (inputs.trimmed().ids == tiny.PAD).sum(1)[:, None]
        return PolicyOutput(output.logprobs + 0.1 * padding * inputs.mask, output.entropy, output.values)


def test_a_model_that_sees_its_padding_is_named(language_model):
    trial = trial_of(language_model, policy=SeesPadding(language_model, None, temperature=1.0))
    assert verdicts(examine_numbers(trial))["model.padding"] == "fault"


def test_a_temperature_that_training_does_not_apply_is_named(language_model):
    trial = trial_of(language_model, temperature=1.0, claimed=0.5)
    (found,) = examine_temperature(trial)
    assert found.verdict == "fault"
    assert "training's logprobs are not those of the logits divided by 0.5" in found.seen


def hot(model, prompts, rollout, *, seeds):
    """A sampler that knows no other temperature than 1."""
    return generate(model, prompts, rollout.model_copy(update={"temperature": 1.0}), seeds=seeds)


def test_a_temperature_that_sampling_does_not_apply_is_named(language_model):
    (found,) = examine_temperature(trial_of(language_model, temperature=0.5), sample=hot)
    assert found.verdict == "fault"
    assert "the sampler works at another temperature" in found.seen
