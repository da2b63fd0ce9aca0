import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import PpoConfig, ValueConfig
from rlhfkit.errors import ConfigError
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.lora import merged, merged_weights, unwrapped
from rlhfkit.models.reward_model import Normalization, RewardModel
from rlhfkit.padding import Sequences
from tests.tiny import FAMILIES, PAD, Directory, builder, load

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
LORA = LoraConfig(rank=4)


def adapted(directory, tmp_path, lora: LoraConfig = LORA) -> LanguageModel:
    made = builder(directory, tmp_path, lora=lora)
    return made.language_model(made.starting_point(), trainable=True)


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model.trunk(IDS))[..., :PAD]


def move_adapters(model: torch.nn.Module) -> None:
    """One step uphill would leave many at zero; this is what any training may make of them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_begin_without_effect_and_can_be_switched_off_later(family, directory_of: Directory, tmp_path):
    base = logits(load(directory_of(family)))
    model = adapted(directory_of(family), tmp_path)
    assert torch.equal(logits(model), base)
    move_adapters(model)
    moved = logits(model)
    assert (moved - base).abs().max() > 0.1
    with model.adapters_off():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_export_has_the_adapters_folded_in(family, directory_of: Directory, tmp_path):
    model = adapted(directory_of(family), tmp_path)
    move_adapters(model)
    expected = logits(model)
    model.save(tmp_path / "policy")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    with torch.no_grad():
        torch.testing.assert_close(exported(IDS).logits[..., :PAD], expected, rtol=0, atol=1e-4)
    assert torch.equal(logits(model), expected)  # the model itself was not folded


def test_update_of_a_weight_is_alpha_over_rank_times_both_matrices(directory_of: Directory, tmp_path):
    model = adapted(directory_of("llama"), tmp_path, LoraConfig(rank=4, alpha=12.0))
    move_adapters(model)
    down, up = (
        next(weight for name, weight in model.named_parameters() if f"layers.0.self_attn.q_proj.{part}" in name)
        for part in ("lora_A", "lora_B")
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    update = dict(merged_weights(model.causal_lm))[name] - load(directory_of("llama")).causal_lm.state_dict()[name]
    torch.testing.assert_close(update, 3.0 * up.detach() @ down.detach())


def test_only_adapters_get_gradients(directory_of: Directory, tmp_path):
    model = adapted(directory_of("llama"), tmp_path)
    move_adapters(model)
    with model.adapters_off():
        pass  # peft switches gradients on its way out
    sequences = Sequences.join([[1, 2]], [[3, 4, 5]], pad=PAD)
    model.logprobs(sequences, temperature=1.0).sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert with_gradient == trainable
    assert all("lora_" in name for name in trainable)
    # Two layers of query, key, value, output, gate, up and down, each with A and B; neither embeddings nor head.
    assert len(trainable) == 2 * 7 * 2


def test_targets_can_be_named(directory_of: Directory, tmp_path):
    model = adapted(directory_of("llama"), tmp_path, LoraConfig(rank=4, targets=("q_proj",)))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 4
    assert all("q_proj" in name for name in trainable)


def test_targets_that_the_model_lacks_are_refused(directory_of: Directory, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.lora\.targets = \['attention'\] does not fit"):
        adapted(directory_of("llama"), tmp_path, LoraConfig(targets=("attention",)))


def test_adapters_start_from_the_recipes_seed_wherever_the_run_is(directory_of: Directory, tmp_path):
    def weights(directory) -> list[torch.Tensor]:
        torch.manual_seed(len(str(directory)))
        model = adapted(directory_of("llama"), directory)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    for ours, theirs in zip(weights(tmp_path / "a"), weights(tmp_path / "elsewhere"), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt"])
def test_reward_model_trains_adapters_and_its_whole_head(family, directory_of: Directory, tmp_path):
    model = builder(directory_of(family), tmp_path, lora=LORA).fresh_reward_model(name="reward_model")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = {name for name in trainable if "lora_" not in name}
    assert [name.rsplit(".", 2)[-2:] for name in heads] == [["score", "weight"]]
    assert not any("score" in name for name in trainable - heads)
    before = scores(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(IDS, torch.tensor([8])).sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert abs(scores(model) - before) > 0.1


def scores(model: RewardModel) -> float:
    with torch.no_grad():
        return float(model(IDS, torch.tensor([8])))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt"])
def test_exported_reward_model_has_adapters_and_head_folded_in(family, directory_of: Directory, tmp_path):
    model = builder(directory_of(family), tmp_path, lora=LORA).fresh_reward_model(name="reward_model")
    move_adapters(model)
    with torch.no_grad():
        unwrapped(model.classifier).get_parameter("score.weight").mul_(2)
    model.save(tmp_path / "reward_model", normalization=Normalization())
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model")
    with torch.no_grad():
        assert float(exported(IDS).logits) == pytest.approx(scores(model), abs=1e-4)
    again = builder(directory_of(family), tmp_path).reward_model(tmp_path / "reward_model")
    assert scores(again) == pytest.approx(scores(model), abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_value_network_trains_adapters_and_its_own_head(family, directory_of: Directory, tmp_path):
    config = PpoConfig(value=ValueConfig(network="separate"))
    critic = builder(directory_of(family), tmp_path, lora=LORA, ppo=config).policy().critic
    assert isinstance(critic, torch.nn.Module)
    trainable = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == {"head.linear.weight", "head.linear.bias"}
    assert any("lora_" in name for name in trainable)
    assert not any("score" in name for name in trainable)
    with torch.no_grad():
        critic.get_parameter("head.linear.weight").fill_(0.1)
    critic(Sequences.join([[1, 2]], [[3, 4, 5]], pad=PAD)).sum().backward()
    assert {name for name, parameter in critic.named_parameters() if parameter.grad is not None} == trainable


@pytest.mark.parametrize("targets", ["all-linear", ("embed_tokens", "q_proj")])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_merged_weights_are_those_of_the_merged_model(family, targets, directory_of: Directory, tmp_path):
    if family != "llama" and targets != "all-linear":  # whose embeddings are the output layer, too
        targets = ("c_attn",) if family == "gpt2" else ("q_proj",)
    model = adapted(directory_of(family), tmp_path, LoraConfig(rank=4, targets=targets)).causal_lm
    move_adapters(model)
    found = dict(merged_weights(model))
    expected = dict(merged(model).named_parameters())  # in which a tied weight comes once
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_weights_of_a_model_without_adapters_are_its_own(family, directory_of: Directory):
    model = load(directory_of(family)).causal_lm
    found, own = dict(merged_weights(model)), dict(model.named_parameters())
    assert {name: weight.data_ptr() for name, weight in found.items()} == {
        name: weight.data_ptr() for name, weight in own.items()
    }
