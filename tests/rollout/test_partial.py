"""Responses that are cut after some tokens, and go on in the next iteration with newer weights."""

import random

import pytest
import torch

from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import ConfigError
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rollout.partial import PartialRollout, num_new_groups
from rlhfkit.training.checkpoint import trainable_tensors
from rlhfkit.training.ppo import run_iteration
from tests.rollout.stretches import run
from tests.training import tiny

FAST = OptimConfig(learning_rate=1e-2)


class Scripted:
    """Gives response number n `lengths[n]` tokens in all, the last of them EOS where it is not the longest there is."""

    def __init__(self, lengths, *, partial_tokens, max_tokens):
        self.lengths, self.partial_tokens, self.max_tokens = lengths, partial_tokens, max_tokens
        self.rounds = []

    def begin(self, parts, iteration):
        assert parts
        self.rounds.append((iteration, [(part.number, len(part.response.ids)) for part in parts]))
        given = [self._more(part) for part in parts]
        return lambda *, on_finished=None: given

    def _more(self, part):
        had, whole = len(part.response.ids), self.lengths(part.number)
        num = min(self.partial_tokens, whole - had)
        ends = had + num == whole and whole < self.max_tokens
        ids = [100 * part.number + had + place for place in range(num)]
        return Response(ids, [-float(token) for token in ids], "eos" if ends else "length")


def rolled(lengths, *, num_groups=2, group_size=1, partial_tokens=2, max_tokens=6):
    script = Scripted(lengths, partial_tokens=partial_tokens, max_tokens=max_tokens)
    made = PartialRollout(
        script.begin,
        num_groups=num_groups,
        group_size=group_size,
        max_tokens=max_tokens,
        partial_tokens=partial_tokens,
    )
    return made, script


def learnt(made, iteration, *, has_next=True):
    return made.responses(iteration, has_next=has_next)


# ── the schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_cut_goes_on_and_what_is_finished_is_learnt_from():
    made, script = rolled([1, 5, 2, 2, 6, 1, 1, 1, 1, 1].__getitem__)
    parts, metrics = learnt(made, 0)
    # Number 1 is cut after 2 tokens, so that one of two is missing: 2 begins, and 1 goes on.
    assert script.rounds[:2] == [(0, [(0, 0), (1, 0)]), (0, [(1, 2), (2, 0)])]
    assert [part.number for part in parts] == [0, 2] and metrics["rollout/rounds"] == 2
    # Two begin for the next one, beside 1, which is at its fifth token.
    assert script.rounds[2:] == [(1, [(1, 4), (3, 0), (4, 0)])]
    parts, metrics = learnt(made, 1)
    assert [part.number for part in parts] == [1, 3] and metrics["rollout/rounds"] == 1
    assert parts[0].response == Response([100, 101, 102, 103, 104], [-100.0, -101.0, -102.0, -103.0, -104.0], "eos")
    # The last round was sampled while iteration 0 was learnt from: by its weights.
    assert parts[0].versions == (0,) * 5
    assert metrics["rollout/cut_episodes"] == 1 and metrics["rollout/waiting_episodes"] == 0
    assert script.rounds[3:] == [(2, [(4, 2), (5, 0), (6, 0)])]
    parts, metrics = learnt(made, 2)
    assert [part.number for part in parts] == [5, 6] and metrics["rollout/cut_episodes"] == 1
    parts, metrics = learnt(made, 3, has_next=False)
    assert [part.number for part in parts] == [4, 7] and len(script.rounds) == 5
    # Tokens 1 and 2 are of iteration 0, 3 and 4 of 1, 5 and 6 of 2: 4 ends at the longest length there is.
    assert parts[0].versions == (0, 0, 1, 1, 2, 2) and parts[0].response.finish_reason == "length"
    assert metrics["rollout/staleness"] == (3 + 3 + 2 + 2 + 1 + 1 + 1) / 7
    assert metrics["rollout/staleness_max"] == metrics["rollout/staleness_bound"] == 3
    assert metrics["rollout/mixed_share"] == 1 / 2


def test_a_group_is_learnt_from_when_all_its_members_are_finished():
    made, script = rolled([1, 5, 1, 1, 1, 1, 1, 1].__getitem__, num_groups=1, group_size=2)
    parts, _ = learnt(made, 0)
    assert [part.number for part in parts] == [2, 3]  # 1 is cut, and 0 waits for it
    assert script.rounds == [(0, [(0, 0), (1, 0)]), (0, [(1, 2), (2, 0), (3, 0)]), (1, [(1, 4), (4, 0), (5, 0)])]
    parts, metrics = learnt(made, 1)
    assert [part.number for part in parts] == [0, 1]  # which began before 4 and 5
    assert metrics["rollout/waiting_episodes"] == 2 and metrics["rollout/cut_episodes"] == 0


@pytest.mark.parametrize(
    ("num_groups", "num_spare", "num_rounds", "expected"),
    [
        (8, 0, 1, 8),  # as many as are learnt from
        (8, 2, 1, 8),  # up to a quarter may be spare
        (8, 5, 1, 5),  # 3 more than that
        (8, 11, 1, 0),
        (8, 5, 2, 8),  # the last of several rounds cuts few
        (3, 1, 1, 2),  # a quarter of 3 is less than one
    ],
)
def test_what_begins_is_what_is_learnt_from_less_what_is_spare(num_groups, num_spare, num_rounds, expected):
    assert num_new_groups(num_groups, num_spare, num_rounds=num_rounds) == expected


@pytest.mark.parametrize("seed", range(12))
def test_no_token_is_older_than_the_bound_and_nothing_is_learnt_twice(seed):
    """Lengths that change from one moment to the next, so that much is spare, or all is cut."""
    draw = random.Random(seed)
    most, partial_tokens = draw.choice([(6, 2), (7, 2), (8, 1), (9, 4)])
    group_size, num_groups = draw.choice([1, 2, 4]), draw.choice([1, 3, 16])
    wanted = [draw.choice([1, most, 0]) for _ in range(40)]  # 0: of any length
    lengths = [
        wanted[number // 20 % 40] or draw.randint(1, most) for number in range(30 * 16 * group_size * num_groups)
    ]
    made, _ = rolled(
        lengths.__getitem__,
        num_groups=num_groups,
        group_size=group_size,
        partial_tokens=partial_tokens,
        max_tokens=most,
    )
    seen = set()
    for iteration in range(30):
        parts, metrics = learnt(made, iteration)
        numbers = [part.number for part in parts]
        assert len(numbers) == num_groups * group_size and not seen & set(numbers)
        seen |= set(numbers)
        assert [len(part.response.ids) for part in parts] == [lengths[number] for number in numbers]
        oldest = max(iteration - part.versions[0] for part in parts)
        assert oldest == metrics["rollout/staleness_max"] <= -(-most // partial_tokens)
        groups = [numbers[start : start + group_size] for start in range(0, len(numbers), group_size)]
        assert all(group == list(range(group[0], group[0] + group_size)) for group in groups)


def test_where_more_is_left_over_than_is_wanted_nothing_is_sampled():
    lengths = [*[12] * 24, *[1] * 100].__getitem__  # six rounds cut whatever begins, and then nothing
    made, script = rolled(lengths, num_groups=4, partial_tokens=2, max_tokens=12)
    seen = [metrics["rollout/waiting_episodes"] for _, metrics in (learnt(made, number) for number in range(8))]
    assert len(seen) == 8 and len(script.rounds) < 8 + 6


def test_where_all_are_of_full_length_the_oldest_tokens_are_as_old_as_the_bound():
    made, _ = rolled(lambda number: 6)
    ages = [learnt(made, iteration)[1]["rollout/staleness_max"] for iteration in range(6)]
    assert ages == [0, 1, 2, 3, 3, 3]


def test_a_schedule_that_was_saved_goes_on_as_one_that_was_not():
    lengths = [1 + (7 * number) % 6 for number in range(200)].__getitem__
    whole, script = rolled(lengths, num_groups=4, group_size=2)
    expected = [learnt(whole, iteration) for iteration in range(6)]
    for stop in range(1, 7):
        first, _ = rolled(lengths, num_groups=4, group_size=2)
        before = [learnt(first, iteration) for iteration in range(stop)]
        second, later = rolled(lengths, num_groups=4, group_size=2)
        second.load_state(first.state())
        assert before + [learnt(second, iteration) for iteration in range(stop, 6)] == expected
        assert script.rounds[len(script.rounds) - len(later.rounds) :] == later.rounds


def test_what_weights_sampled_that_are_no_more_is_forgotten():
    made, script = rolled([6, 6, *[1] * 20].__getitem__)
    learnt(made, 0)
    assert script.rounds[-1] == (1, [(0, 4), (1, 4), (4, 0), (5, 0)])
    made.drop()
    resumed, later = rolled([6, 6, *[1] * 20].__getitem__)
    resumed.load_state(made.state())
    for each, rounds in ((made, script.rounds), (resumed, later.rounds)):
        parts, metrics = learnt(each, 1)
        assert [part.number for part in parts] == [6, 7] and metrics["rollout/staleness"] == 0
        assert rounds[-2:] == [(1, [(6, 0), (7, 0)]), (2, [(8, 0), (9, 0)])]


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("partial_tokens", [1, 3, 7])
def test_a_response_that_is_cut_and_goes_on_with_the_same_weights_is_the_whole_one(partial_tokens):
    model = tiny.language_model(dtype=torch.float64)
    prompts = [list(prompt.ids) for prompt in tiny.prompts(24)]
    config = RolloutConfig(max_response_tokens=10, max_staleness=1, partial_tokens=partial_tokens, slots=5)
    whole = generate(model, prompts, config, seeds=range(24))  # without offsets nothing is cut
    parts = [Response([], [], "length") for _ in prompts]
    num_cut = 0
    for _ in range(-(-10 // partial_tokens)):
        rows = [row for row, part in enumerate(parts) if not part.finished and len(part.ids) < 10]
        more = generate(
            model,
            [[*prompts[row], *parts[row].ids] for row in rows],
            config,
            seeds=rows,
            offsets=[len(parts[row].ids) for row in rows],
        )
        for row, new in zip(rows, more, strict=True):
            assert len(new.ids) <= partial_tokens
            num_cut += not new.finished
            had = parts[row]
            parts[row] = Response([*had.ids, *new.ids], [*had.logprobs, *new.logprobs], new.finish_reason)
    assert [part.ids for part in parts] == [response.ids for response in whole]
    assert [part.finish_reason for part in parts] == [response.finish_reason for response in whole]
    assert len({len(part.ids) for part in parts}) > 3 and num_cut > 5
    for part, response in zip(parts, whole, strict=True):  # a KV cache is kept in float32 sums at most
        assert part.logprobs == pytest.approx(response.logprobs, abs=1e-6)


def test_responses_of_several_lengths_go_on_together_up_to_their_own_ends():
    model = tiny.language_model()
    config = RolloutConfig(max_response_tokens=6, max_staleness=1, partial_tokens=4)
    model.causal_lm.generation_config.eos_token_id = None
    found = generate(model, [[2, 3, 4, 5, 6, 7]] * 40, config, seeds=range(40), offsets=[0, 1, 4, 5] * 10)
    longest = [max(len(response.ids) for response in found[first::4]) for first in range(4)]
    assert longest == [4, 4, 2, 1]


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def trainer(partial_tokens, *, num_iterations=5, **ppo):
    config = PpoConfig(
        **{
            "iterations": num_iterations,
            "rollout_episodes": 8,
            "minibatch_episodes": 4,
            "epochs": 2,
            "optim": FAST,
            "value": ValueConfig(optim=FAST),
            "kl": FixedKLConfig(coef=0.1),
            "checkpoint_minutes": 1e-9,
            "min_eos_rate": 0.0,
            **ppo,
        }
    )
    rollout = RolloutConfig(max_response_tokens=8, max_staleness=1, partial_tokens=partial_tokens, chunk_rows=3)
    return tiny.trainer(config, reward=tiny.Scripted(lambda text: float(text.count("a"))), rollout=rollout)


def weights(made):
    return {name: tensor.clone() for name, tensor in trainable_tensors(made.policy).items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_where_nothing_is_long_enough_to_be_cut_no_bit_changes():
    uncut, plain = trainer(8), trainer(None)
    for _ in range(3):
        experience, metrics = run_iteration(uncut)
        of_plain, _ = run_iteration(plain)
        assert torch.equal(experience.inputs.ids, of_plain.inputs.ids)
    assert metrics["rollout/staleness"] == metrics["rollout/staleness_max"] == metrics["rollout/staleness_bound"] == 1
    assert_same(weights(uncut), weights(plain))


def test_each_token_is_corrected_by_the_logprob_of_the_weights_that_sampled_it():
    made = trainer(2)
    mixed = 0.0
    for _ in range(4):
        made.rollout.partial._take()
        sampled = {tuple(part.response.ids): part for part in made.rollout.partial._parts}
        experience, metrics = run_iteration(made)
        mixed += metrics["rollout/mixed_share"]
        for row, mask in enumerate(experience.mask):
            start = int(experience.inputs.prompt_tokens[row])
            part = sampled.get(tuple(experience.inputs.ids[row, start : start + int(mask.sum())].tolist()))
            if part is not None:
                of_sampler = torch.tensor(part.response.logprobs, dtype=torch.float64)
                ratio = (experience.old_logprobs[row][mask].double() - of_sampler).exp()
                expected = ratio.clamp(max=2.0).float()
                torch.testing.assert_close(experience.importance_weights[row][mask], expected, rtol=1e-5, atol=1e-6)
    assert mixed > 0


def test_samples_say_how_old_the_weights_are_that_sampled_them():
    made = trainer(2)
    rows = [row for _ in range(4) for row in run_iteration(made)[0].samples]
    assert all(row["oldest_weights"] <= row["newest_weights"] for row in rows)
    assert any(row["oldest_weights"] < row["newest_weights"] for row in rows)


def test_groups_are_learnt_from_as_a_whole():
    made = trainer(2, estimator="grpo", group_size=4)
    for _ in range(3):
        experience, _ = run_iteration(made)
        inputs = experience.inputs
        prompts = [inputs.ids[row, : int(inputs.prompt_tokens[row])].tolist() for row in range(8)]
        assert prompts[0] == prompts[3] and prompts[4] == prompts[7]


@pytest.mark.thorough
def test_a_run_that_was_stopped_goes_on_with_what_was_cut_bit_for_bit(tmp_path):
    whole, stopped = trainer(2), trainer(2)
    expected = run(whole, tmp_path / "whole", num=5)
    assert run(stopped, tmp_path / "stopped", num=2)[-1]["rollout/cut_episodes"] > 0
    resumed = trainer(2)
    metrics = run(resumed, tmp_path / "stopped", num=3)
    for found, wanted in zip(metrics, expected[2:], strict=True):
        names = [name for name in wanted if name.startswith("rollout/")]
        assert {name: found[name] for name in names} == {name: wanted[name] for name in names}
        assert found["rollout/staleness_max"] <= found["rollout/staleness_bound"] == 4
    assert_same(weights(resumed), weights(whole))


def test_to_cut_without_staleness_is_refused():
    with pytest.raises(ConfigError, match=r"partial_tokens 4 .* max_staleness is 0; set it to 1"):
        RolloutConfig(partial_tokens=4)
