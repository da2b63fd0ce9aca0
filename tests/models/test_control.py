import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlhfkit.config.control import NetworkConfig
from rlhfkit.errors import EnvError, ShapeError
from rlhfkit.models.control import ControlPolicy, ControlSteps
from rlhfkit.models.distributions import action_kind

SPACES = {
    "discrete": spaces.Discrete(4, start=2),
    "multi": spaces.MultiDiscrete([2, 5, 3]),
    "binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)),
}


def oracle(name, kind, outputs):
    """The same distribution by torch.distributions, in float64."""
    outputs = outputs.double()
    match name:
        case "discrete":
            return torch.distributions.Categorical(logits=outputs)
        case "multi":
            return [torch.distributions.Categorical(logits=part) for part in outputs.split([2, 5, 3], -1)]
        case "binary":
            return torch.distributions.Independent(torch.distributions.Bernoulli(logits=outputs), 1)
        case "box":
            std = kind.log_std.double().exp().expand(outputs.shape)
            return torch.distributions.Independent(torch.distributions.Normal(outputs, std), 1)


@pytest.mark.parametrize("name", SPACES)
def test_logprobs_and_entropy_are_those_of_the_distribution(name):
    kind = action_kind(SPACES[name], log_std=-0.3)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(50, 4, kind.num_outputs, generator=generator)
    actions = kind.sample(outputs, kind.noise((50, 4), generator))
    logprobs, entropy = kind.logprobs_and_entropy(outputs, actions)
    wanted = oracle(name, kind, outputs)
    if name == "multi":
        expected = sum(part.log_prob(actions[..., i]) for i, part in enumerate(wanted))
        expected_entropy = sum(part.entropy() for part in wanted)
    else:
        expected = wanted.log_prob(actions.double() if name in ("binary", "box") else actions)
        expected_entropy = wanted.entropy()
    torch.testing.assert_close(logprobs.double(), expected.detach(), atol=1e-5, rtol=1e-5, check_dtype=False)
    torch.testing.assert_close(entropy.double(), expected_entropy.detach(), atol=1e-5, rtol=1e-5)


def test_draws_have_the_probabilities_of_the_softmax():
    kind = action_kind(spaces.Discrete(3))
    outputs = torch.tensor([1.0, 0.0, -1.0]).expand(40_000, 3)
    drawn = kind.sample(outputs, kind.noise((40_000,), torch.Generator().manual_seed(1)))
    shares = torch.bincount(drawn) / 40_000
    torch.testing.assert_close(shares, outputs[0].softmax(0), atol=0.01, rtol=0)  # four deviations of a share


@pytest.mark.parametrize("name", SPACES)
def test_what_reaches_the_environment_lies_in_its_space(name):
    kind = action_kind(SPACES[name])
    generator = torch.Generator().manual_seed(2)
    outputs = 5 * torch.randn(200, kind.num_outputs, generator=generator)
    with torch.no_grad():
        actions = kind.sample(outputs, kind.noise((200,), generator))
    for action in kind.to_env(actions):
        assert SPACES[name].contains(SPACES[name].dtype.type(action) if name == "discrete" else action)


def test_minus_one_to_one_is_the_range_of_a_bounded_action():
    kind = action_kind(SPACES["box"])
    actions = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [3.0, -3.0]])
    assert kind.to_env(actions).tolist() == [[-2.0, 0.0], [0.0, 5.0], [2.0, 10.0], [2.0, 0.0]]


def test_an_unbounded_action_is_passed_on_as_it_is():
    kind = action_kind(spaces.Box(-np.inf, np.inf, (1,), np.float32))
    assert kind.to_env(torch.tensor([[123.0]])).tolist() == [[123.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_largest_number_of_a_type_is_no_bound(dtype):
    largest = np.finfo(dtype).max
    space = spaces.Box(np.array([-largest, -2.0], dtype), np.array([largest, 4.0], dtype), dtype=dtype)
    assert action_kind(space).to_env(torch.tensor([[0.5, 0.5]])).tolist() == [[0.5, 2.5]]


def test_float32_bounds_in_float64_are_none():
    largest = float(np.finfo(np.float32).max)
    assert action_kind(spaces.Box(-largest, largest, (1,), np.float64)).to_env(torch.tensor([[0.5]])).tolist() == [
        [0.5]
    ]


def policy_for(observation_space, action_space):
    torch.manual_seed(0)
    return ControlPolicy(
        gymnasium.spaces.utils.flatdim(observation_space),
        action_space,
        NetworkConfig(hidden=(8,)),
        observation_space=observation_space,
    )


OBSERVATIONS = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "discrete": spaces.Discrete(5, start=2),
    "dict": spaces.Dict({"z": spaces.Discrete(3), "a": spaces.Box(-1, 1, (2, 2), np.float64)}),
    "text": spaces.Text(5),
    "tuple": spaces.Tuple((spaces.MultiBinary(3), spaces.Dict({"x": spaces.Box(-1, 1, (), np.float32)}))),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=-1),
    "box": spaces.Box(np.array([0.0, -2.0]), np.array([10.0, 2.0]), dtype=np.float64),
    "switches": spaces.MultiBinary((2, 2)),
    "choices": spaces.MultiDiscrete([3, 4], start=[1, 2]),
}


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_predict_takes_the_environments_observation_and_gives_its_action(observations, actions):
    space, action_space = OBSERVATIONS[observations], ACTIONS[actions]
    space.seed(1)
    policy = policy_for(space, action_space)
    several = [space.sample() for _ in range(4)]
    single = [policy.predict(one) for one in several]
    for action, one in zip(single, several, strict=True):
        assert action_space.contains(action)
        flat = torch.from_numpy(np.asarray(gymnasium.spaces.utils.flatten(space, one), np.float32))[None]
        assert np.array_equal(action, policy.actions.to_env(policy.act(flat, None))[0])
    empty = gymnasium.vector.utils.create_empty_array(space, 4)
    batch = policy.predict(gymnasium.vector.utils.concatenate(space, several, empty))
    assert np.allclose(batch, np.stack(single))  # products of other shapes round otherwise
    drawn = [policy.predict(several[0], deterministic=False) for _ in range(20)]
    assert all(action_space.contains(action) for action in drawn)
    assert any(not np.array_equal(action, drawn[0]) for action in drawn)


def test_predict_reaches_the_bounds_of_the_environment():
    policy = policy_for(OBSERVATIONS["box"], spaces.Box(-2.0, 2.0, (1,), np.float32))
    with torch.no_grad():
        policy.head.bias.fill_(0.5)  # a quarter of the range above its middle
        policy.head.weight.zero_()
    assert policy.predict(np.zeros(3, np.float32)).tolist() == [1.0]


@pytest.mark.parametrize(
    ("observations", "wrong", "message"),
    [
        ("box", np.zeros(4), r"observation is ndarray \(4,\): expected one of Box"),
        ("dict", {"z": 1}, "observation is dict: expected one of Dict"),
        ("dict", {"z": np.array([1, 2]), "a": np.zeros((3, 2, 2))}, "observation is dict"),
        ("box", np.zeros((0, 3)), "a batch without observations"),
    ],
)
def test_predict_refuses_what_is_no_observation(observations, wrong, message):
    with pytest.raises(ShapeError, match=message):
        policy_for(OBSERVATIONS[observations], ACTIONS["discrete"]).predict(wrong)


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(0, 9, (1,), int)])
def test_actions_without_a_distribution_are_refused(space):
    with pytest.raises(EnvError, match="are not supported; expected Discrete"):
        action_kind(space)


def make_policy(*, shared=False):
    torch.manual_seed(0)
    return ControlPolicy(3, spaces.Discrete(2), NetworkConfig(hidden=(8, 8)), shared_trunk=shared)


def test_the_policy_begins_undecided_with_orthogonal_layers():
    policy = make_policy()
    weights = policy.trunk[0].weight.detach()
    torch.testing.assert_close(weights.T @ weights, 2 * torch.eye(3))
    outputs = policy.head(policy.trunk(torch.randn(100, 3)))
    assert outputs.softmax(-1).sub(0.5).abs().max() < 0.02


def test_normalised_observations_are_clipped_at_ten_deviations():
    policy = make_policy()
    policy.normalize_by(np.array([1.0, 0.0, 0.0]), np.array([2.0, 1.0, 1.0]))
    seen = policy._seen(torch.tensor([[3.0, 50.0, -50.0]]))
    assert seen.tolist() == [[1.0, 10.0, -10.0]]


@pytest.mark.parametrize("shared", [False, True])
def test_only_a_shared_trunk_learns_from_the_value(shared):
    policy = make_policy(shared=shared)
    output = policy.evaluate(ControlSteps(torch.randn(5, 1, 3), torch.zeros(5, 1, dtype=torch.long)))
    output.values.sum().backward()
    assert (policy.trunk[0].weight.grad is not None) == shared
    assert all(p.grad is not None for name, p in policy.named_parameters() if name.startswith("critic."))
