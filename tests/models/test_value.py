import pytest
import torch

from rlhfkit.config.ppo import PpoConfig, ValueConfig
from rlhfkit.models.language import TextPolicy
from rlhfkit.models.reward_model import Normalization
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.padding import Sequences
from tests.tiny import CPU, EOS, FAMILIES, PAD, Directory, builder, load

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
RESPONSES = [[12, 13, EOS], [14, 15, 16, 17, 18, 19, 20, EOS], [EOS]]


def config(**value) -> PpoConfig:
    return PpoConfig(value=ValueConfig(network="separate", **value))


@pytest.mark.parametrize("family", FAMILIES)
def test_critic_that_starts_from_the_reward_model_values_a_finished_text_at_its_score(
    family, directory_of: Directory, tmp_path
):
    made = builder(directory_of(family), tmp_path, ppo=config())
    reward_model = made.fresh_reward_model(name="reward_model")
    reward_model.save(tmp_path / "reward_model", normalization=Normalization(mean=0.7, std=2.5))
    policy = made.policy()
    assert isinstance(policy.critic, ValueNetwork)
    # The state before a further token is the whole text, EOS included.
    inputs = Sequences.join(PROMPTS, [[*response, 0] for response in RESPONSES], pad=PAD)
    whole = Sequences.join(PROMPTS, RESPONSES, pad=PAD)
    with torch.no_grad():
        values = policy.evaluate(inputs).values
        scores = reward_model(whole.ids, whole.lengths())
    last = torch.tensor([len(response) for response in RESPONSES])
    expected = (scores - 0.7) / 2.5
    torch.testing.assert_close(values[torch.arange(3), last], expected, rtol=0, atol=1e-5)
    assert values[0, :4].unique().numel() == 4


def test_value_is_that_of_the_state_before_the_token(directory_of: Directory, tmp_path):
    """It may not know the token, but all before it."""
    critic = builder(directory_of("llama"), tmp_path, ppo=config()).policy().critic
    assert isinstance(critic, ValueNetwork)
    with torch.no_grad():
        torch.nn.init.normal_(critic.head.linear.weight)
        first = critic(Sequences.join([[1, 2]], [[3, 4, 5]], pad=PAD))
        other = critic(Sequences.join([[1, 2]], [[3, 9, 5]], pad=PAD))
    assert torch.equal(first[:2], other[:2])
    assert first[2] != other[2]


def test_critic_without_reward_model_starts_at_zero_on_the_policys_trunk(directory_of: Directory, tmp_path):
    made = builder(directory_of("llama"), tmp_path, ppo=config())
    policy = made.policy()
    critic, inputs = policy.critic, Sequences.join(PROMPTS, RESPONSES, pad=PAD)
    assert isinstance(critic, ValueNetwork)
    assert not policy.evaluate(inputs).values.any()
    ours = critic.classifier.base_model.state_dict()
    for name, tensor in policy.language_model.causal_lm.base_model.state_dict().items():
        assert torch.equal(ours[name], tensor)


def test_critic_may_start_from_the_policy_though_there_is_a_reward_model(directory_of: Directory, tmp_path):
    made = builder(directory_of("llama"), tmp_path, ppo=config(init="policy"))
    made.fresh_reward_model(name="reward_model").save(tmp_path / "reward_model", normalization=Normalization())
    inputs = Sequences.join(PROMPTS, RESPONSES, pad=PAD)
    assert not made.policy().evaluate(inputs).values.any()


def test_value_head_starts_at_zero_and_is_linear_in_the_hidden_state():
    head = ValueHead(4, CPU)
    hidden = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 2.0]])
    assert head(hidden).tolist() == [0.0, 0.0]
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0.5, -1.0, 0.25]]))
        head.linear.bias.fill_(3.0)
    assert head(hidden).tolist() == [1.0 + 1.0 - 3.0 + 1.0 + 3.0, 0.5 + 0.0 + 1.0 + 0.5 + 3.0]


def test_value_head_is_float32_whatever_the_model_is():
    head = ValueHead(4, CPU)
    assert head(torch.zeros(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_head_on_the_trunk_reads_the_state_that_the_logits_come_from(directory_of: Directory):
    model = load(directory_of("llama"))
    head = ValueHead(model.width, CPU)
    with torch.no_grad():
        torch.nn.init.normal_(head.linear.weight)
        inputs = Sequences.join(PROMPTS, RESPONSES, pad=PAD)
        values = TextPolicy(model, head, temperature=1.0).evaluate(inputs).values
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            for step in range(len(response)):
                state = model.trunk(torch.tensor([[*prompt, *response[:step]]]))[0, -1]
                expected = float(state @ head.linear.weight[0])
                assert float(values[row, step]) == pytest.approx(expected, abs=1e-4)
    assert not values[~inputs.mask].any()
