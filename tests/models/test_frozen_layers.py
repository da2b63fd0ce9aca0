"""Layers that nothing trains read a sequence once, and give all who read on from there what the whole model would."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhfkit.config.model import LoraConfig, PretrainedModelConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import ConfigError
from rlhfkit.models.frozen_layers import Stem
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.layers import layers_of
from rlhfkit.models.lora import unwrapped
from rlhfkit.models.reward_model import Normalization, RewardModel
from rlhfkit.padding import Sequences
from rlhfkit.records import Prompt
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.training.checkpoint import trainable_tensors
from rlhfkit.training.ppo import run_iteration
from tests.tiny import EOS, FAMILIES, MORE_FAMILIES, PAD, Directory, builder, load, ppo_trainer, save_family

ROWS = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [30, 31, 32, 33, 34]]


def sequences() -> Sequences:
    return Sequences.join([row[:2] for row in ROWS], [row[2:] for row in ROWS], pad=PAD)


def with_stem(directory, num_trained_layers: int = 1) -> LanguageModel:
    model = load(directory)
    model.stem = Stem(unwrapped(model.causal_lm), num_trained_layers=num_trained_layers)
    return model


class Tokens:
    """Counts the tokens that a layer reads."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.num = 0
        layer.register_forward_pre_hook(self._count)

    def _count(self, _, inputs) -> None:
        self.num += inputs[0].shape[0] * inputs[0].shape[1]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_what_was_read_once_gives_the_logprobs_of_the_whole_model(family, directory_of: Directory):
    policy = TextPolicy(with_stem(directory_of(family)), None, temperature=0.7)
    with torch.no_grad():
        whole = policy.evaluate(sequences())
        lower = Tokens(layers_of(policy.language_model.causal_lm)[0])
        read = policy.read_once(sequences(), max_tokens=1)  # a row at a time
        assert lower.num == 3 + 5 + 8
        parted = policy.evaluate(read)
        assert lower.num == 16
    torch.testing.assert_close(parted.logprobs, whole.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(parted.entropy, whole.entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_gradients_are_those_of_the_whole_model(family, directory_of: Directory):
    def gradients(model: LanguageModel, inputs: Sequences) -> dict[str, torch.Tensor]:
        torch.autograd.backward(model.logprobs(inputs, temperature=0.7).sum())
        parameters = unwrapped(model.causal_lm).named_parameters()
        return {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}

    model = with_stem(directory_of(family))
    found = gradients(model, TextPolicy(model, None, temperature=0.7).read_once(sequences(), max_tokens=99))
    expected = gradients(load(directory_of(family)), sequences())
    learning = {name for name, weight in unwrapped(model.causal_lm).named_parameters() if weight.requires_grad}
    assert found.keys() == learning
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "learning"),
    [
        ("gpt2", {"transformer.h.1", "transformer.ln_f"}),  # its output is tied to its embeddings
        ("llama", {"model.layers.1", "model.norm", "lm_head"}),
        ("opt", {"model.decoder.layers.1", "model.decoder.final_layer_norm"}),
    ],
)
def test_what_learns_lies_above(family, learning, directory_of: Directory):
    model = unwrapped(with_stem(directory_of(family)).causal_lm)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert {part for part in learning if any(name.startswith(part) for name in names)} == learning
    assert all(name.startswith(tuple(learning)) for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_common_are_in_memory_once(family, directory_of: Directory):
    model, other = with_stem(directory_of(family)), load(directory_of(family))
    expected = other.logprobs(sequences(), temperature=1.0)
    other.stem = model.stem.under(other.causal_lm)
    assert other.stem is model.stem
    ours, theirs = (dict(unwrapped(m.causal_lm).named_parameters()) for m in (model, other))
    for name, weight in ours.items():
        assert (weight is theirs[name]) == (not weight.requires_grad)
    read = model.stem.read(sequences(), max_tokens=99)
    torch.testing.assert_close(other.logprobs(read, temperature=1.0), expected, rtol=0, atol=1e-5)


def test_model_that_begins_otherwise_reads_for_itself(directory_of: Directory, tmp_path):
    model = with_stem(directory_of("gpt2"))
    other, strange = load(directory_of("gpt2")), load(directory_of("llama"))
    with torch.no_grad():
        next(layers_of(other.causal_lm)[0].parameters())[0] += 1
    assert model.stem.under(other.causal_lm) is None
    assert model.stem.under(strange.causal_lm) is None
    read = model.stem.read(sequences(), max_tokens=99)
    assert torch.equal(other.logprobs(read, temperature=1.0), other.logprobs(sequences(), temperature=1.0))


def scorer(directory) -> RewardModel:
    torch.manual_seed(1)
    classifier = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1).eval()
    return RewardModel(classifier, load(directory).encoder)


def test_reward_model_goes_on_from_what_was_read_and_reads_the_rest(directory_of: Directory):
    episodes = [ScoredText(Prompt("ab"), "ab", "cdefgh"), ScoredText(Prompt("b"), "b", "", finished=False)]
    model, reward_model = with_stem(directory_of("gpt2")), scorer(directory_of("gpt2"))
    prompt, response = model.encoder.prompt_ids(Prompt("ab")), [*model.encoder.prompt_ids(Prompt("cdefgh")), EOS]
    source = RewardModelReward(reward_model, Normalization())
    expected = source.score(episodes)
    reward_model.stem = model.stem.under(reward_model.classifier)
    lower = Tokens(layers_of(model.causal_lm)[0])
    lower_of_scorer = Tokens(layers_of(reward_model.classifier)[0])
    torch.testing.assert_close(source.score(episodes), expected, rtol=0, atol=1e-5)
    assert lower.num == 2 * 9  # nothing was read before
    model.stem.read(Sequences.join([prompt], [response], pad=PAD), max_tokens=99)
    assert lower.num == 3 * 9
    torch.testing.assert_close(source.score(episodes), expected, rtol=0, atol=1e-5)
    assert lower.num == 3 * 9 + 1
    assert lower_of_scorer.num == 0


def test_an_iteration_reads_each_sequence_once_below(directory_of: Directory, tmp_path, monkeypatch):
    fast = OptimConfig(learning_rate=1e-3)
    ppo = PpoConfig(
        rollout_episodes=8,
        minibatch_episodes=4,
        epochs=2,
        optim=fast,
        value=ValueConfig(optim=fast),
        microbatch_tokens=64,
    )
    rollout = RolloutConfig(max_response_tokens=12)
    made = builder(directory_of("gpt2"), tmp_path, num_trained_layers=1, ppo=ppo, rollout=rollout)
    trainer = ppo_trainer(made)
    below = layers_of(trainer.policy.language_model.causal_lm)[0]
    before = {name: weight.clone() for name, weight in below.named_parameters()}
    read, sampled = Tokens(below), []
    collect = trainer.policy.read_once

    def read_once(*args, **kwargs):
        sampled.append(read.num)
        return collect(*args, **kwargs)

    monkeypatch.setattr(trainer.policy, "read_once", read_once)
    experience, _ = run_iteration(trainer)
    num = int(experience.inputs.lengths().sum())
    assert num <= read.num - sampled[0] <= num + 64  # of padding
    assert all(torch.equal(before[name], weight) for name, weight in below.named_parameters())
    assert not any(".h.0." in name for name in trainable_tensors(trainer.policy))


def test_training_the_last_layers_continues_bit_for_bit(directory_of: Directory, tmp_path):
    def trainer():
        ppo = PpoConfig(rollout_episodes=8, minibatch_episodes=4, epochs=2, microbatch_tokens=64)
        rollout = RolloutConfig(max_response_tokens=6)
        return ppo_trainer(builder(directory_of("llama"), tmp_path, num_trained_layers=1, ppo=ppo, rollout=rollout))

    whole = trainer()
    for _ in range(2):
        run_iteration(whole)
    first = trainer()
    run_iteration(first)
    second = trainer()
    second.policy.load_state_dict(first.policy.state_dict())
    for name, optimizer in second.optimizers.items():
        optimizer.load_state(first.optimizers[name].state())
    second.iteration, second.kl_coef = first.iteration, first.kl_coef
    run_iteration(second)
    expected, found = trainable_tensors(whole.policy), trainable_tensors(second.policy)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_model_without_a_layer_below_is_refused(tmp_path):
    model = load(save_family("gpt2", tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"num_trained_layers = 2, but the model has 2 layers; give a smaller number"):
        Stem(unwrapped(model.causal_lm), num_trained_layers=2)


def test_adapters_and_last_layers_exclude_each_other():
    with pytest.raises(ValueError, match="lora and num_trained_layers = 1 are both set"):
        PretrainedModelConfig(path="model", lora=LoraConfig(), num_trained_layers=1)
