"""Responses in chunks, and responses that older weights have sampled while newer ones were learning."""

import pytest
import torch

from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.distributed.ranks import ALONE, Ranks
from rlhfkit.rollout import engine
from rlhfkit.rollout.ahead import Ahead
from rlhfkit.rollout.engine import begun, chunks_of, in_order, shared_out
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.training.checkpoint import trainable_tensors
from rlhfkit.training.ppo import run_iteration
from tests.rollout.stretches import run
from tests.training import tiny

FAST = OptimConfig(learning_rate=1e-2)


def trainer(*, max_staleness=1, num_iterations=4, **rollout):
    config = PpoConfig(
        iterations=num_iterations,
        rollout_episodes=8,
        minibatch_episodes=4,
        epochs=2,
        optim=FAST,
        value=ValueConfig(optim=FAST),
        kl=FixedKLConfig(coef=0.1),
        checkpoint_minutes=1e-9,
        min_eos_rate=0.0,
    )
    return tiny.trainer(
        config,
        reward=tiny.Scripted(lambda text: float(text.count("a"))),
        rollout=RolloutConfig(max_response_tokens=6, max_staleness=max_staleness, **rollout),
    )


def tokens(experience):
    inputs, lengths = experience.inputs, experience.mask.sum(1)
    return [
        ids[start : start + length].tolist()
        for ids, start, length in zip(inputs.ids, inputs.prompt_tokens, lengths, strict=True)
    ]


# ── chunks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chunk_has_fixed_rows_and_the_last_one_what_is_left():
    assert chunks_of(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]


@pytest.mark.parametrize("here", [ALONE, Ranks(0, 2, 0, 2), Ranks(1, 2, 1, 2)])
def test_ranks_sample_whole_chunks_whoever_gets_them(monkeypatch, here):
    seen = []

    def sample(model, prompts, config, *, seeds, on_finished=None, offsets=None):
        seen.append(([prompt[0] for prompt in prompts], list(seeds)))
        return [Response([seed], [0.0], "length") for seed in seeds]

    class Two(Ranks):
        def put_together(self, own, num):  # the other one has sampled the rest
            return [[Response([row], [0.0], "length") for row in rows] for rows in chunks_of(5, 2)]

    here = here if here.size == 1 else Two(*vars(here).values())
    monkeypatch.setattr(engine, "ranks", lambda: here)
    config = RolloutConfig(chunk_rows=2)
    responses = shared_out(sample)(None, [[row] for row in range(5)], config, seeds=list(range(5)))
    chunks = [[0, 1], [2, 3], [4]]
    assert seen == [(rows, rows) for rows in chunks[here.rank :: here.size]]
    assert [response.ids for response in responses] == [[row] for row in range(5)]


def test_responses_come_back_in_the_order_of_rows():
    of = {row: Response([row], [0.0], "eos") for row in range(5)}
    rows = [range(1, 5, 2), range(0, 5, 2)]
    assert in_order([[of[row] for row in batch] for batch in rows], rows) == [of[row] for row in range(5)]


# ── ahead ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_iteration_learns_from_what_the_weights_before_the_last_update_sampled():
    ahead = trainer()
    policy, rollout = ahead.policy.language_model, ahead.rollout
    prompts = [prompt.ids for prompt in rollout.prompts_of(1)]
    seeds = [rollout.seed_of_response(1, row) for row in range(len(prompts))]
    wanted = generate(policy, prompts, rollout.rollout, seeds=seeds)  # before the first update
    first, _ = run_iteration(ahead)
    assert generate(policy, prompts, rollout.rollout, seeds=seeds) != wanted
    second, metrics = run_iteration(ahead)
    assert tokens(second) == [response.ids for response in wanted]
    assert first.metrics["rollout/staleness"] == 0 and metrics["rollout/staleness"] == 1


def test_the_loss_is_corrected_by_the_ratio_of_new_to_old_weights_up_to_the_cap():
    ahead = trainer(importance_cap=1.05)
    run_iteration(ahead)
    policy, rollout = ahead.policy, ahead.rollout
    responses, _ = rollout.ahead._pending[1](), None
    experience, _ = run_iteration(ahead)
    sampled = [number for response in responses for number in response.logprobs]
    ratio = (experience.old_logprobs[experience.mask].double() - torch.tensor(sampled, dtype=torch.float64)).exp()
    weights = experience.importance_weights[experience.mask].double()
    torch.testing.assert_close(weights, ratio.clamp(max=1.05), rtol=1e-5, atol=1e-6)
    assert (ratio > 1.05).any() and (ratio < 1).any()
    assert policy is not None


def test_without_staleness_nothing_is_sampled_ahead_and_nothing_is_corrected():
    on_policy = trainer(max_staleness=0)
    experience, metrics = run_iteration(on_policy)
    assert experience.importance_weights is None and "rollout/staleness" not in metrics
    assert on_policy.rollout.state() == {}


def test_nothing_is_sampled_for_an_iteration_that_will_not_be():
    begun_for = []
    ahead = Ahead(lambda iteration: begun_for.append(iteration) or (lambda *, on_finished=None: []))
    for iteration in range(3):
        ahead.responses(iteration, has_next=iteration + 1 < 3)
    assert begun_for == [0, 1, 2]


def test_a_run_that_was_stopped_goes_on_with_what_was_sampled_ahead_bit_for_bit(tmp_path):
    whole, stopped = trainer(), trainer()
    run(whole, tmp_path / "whole", num=4)
    run(stopped, tmp_path / "stopped", num=2)
    resumed = trainer()
    metrics = run(resumed, tmp_path / "stopped", num=2)
    assert [row["rollout/staleness"] for row in metrics] == [1, 1]
    for name, tensor in trainable_tensors(whole.policy).items():
        assert torch.equal(tensor, trainable_tensors(resumed.policy)[name]), name


def test_what_was_sampled_ahead_is_kept_as_it_was():
    responses = [
        Response([5, 2], [-0.1, -1 / 3], "eos"),
        Response([7], [-2.5], "length"),
        Response([1], [-3.0], "stop"),
    ]
    before = Ahead(lambda iteration: lambda *, on_finished=None: responses)
    before.responses(3, has_next=True)
    after = Ahead(lambda iteration: pytest.fail("it is there"))
    after.load_state(before.state())
    assert after.responses(4, has_next=False) == (responses, 1)


def test_what_weights_sampled_that_are_no_more_is_sampled_again(tmp_path):
    ahead = trainer()
    run_iteration(ahead)
    ahead.rollout.weights_were_put_back()
    _, metrics = run_iteration(ahead)
    assert metrics["rollout/staleness"] == 0


def test_an_engine_elsewhere_begins_and_is_waited_for_later():
    calls = []

    class Elsewhere:
        importance_cap = None

        def loaded(self, model):
            raise AssertionError

        def begin(self, model, prompts, config, *, seeds, iteration, on_part=None, offsets=None):
            calls.append((prompts, seeds, iteration, offsets))
            return lambda *, on_finished=None: [Response([9], [0.0], "eos")]

    pending = begun(Elsewhere(), None, [[1, 2]], RolloutConfig(), seeds=[4], iteration=6, offsets=[1])
    assert calls == [([[1, 2]], [4], 6, [1])]
    assert pending() == [Response([9], [0.0], "eos")]
