"""Direct preference optimisation: its losses against numbers made by hand, what it reads, and that it learns."""

import json
import math

import pytest
import torch

from rlhfkit.config.training import DpoConfig, OptimConfig
from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.machine.progress import Progress
from rlhfkit.records import Preference, Prompt
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.dpo import DpoPair, Side, dpo_loss, encode_dpo_pairs, ref_logprobs_of, train_dpo
from tests.training import tiny

# With an epsilon this large, AdamW moves the weights by the negative gradient: rate * m / (sqrt(v) + eps) = gradient.
PLAIN = OptimConfig(learning_rate=1e7, adam_eps=1e7, schedule="constant", max_grad_norm=1e9)


def pair(prompt, chosen, rejected):
    return DpoPair(Side(prompt, chosen), Side(prompt, rejected), tuple(prompt))


PAIRS = [
    pair([2, 3], [4, 1], [5, 6, 7, 1]),
    pair([8, 9], [2, 2, 2, 3, 1], [1]),
    pair([4], [5, 1], [6, 1]),
    pair([10], [11, 12, 1], [13, 1]),
]


def settings(**changes):
    return DpoConfig(**{"minibatch_pairs": 4, "validation_share": 0.0, "optim": PLAIN, **changes})


def train(model, pairs, config, directory, *, ref_logprobs=None, progress=None):
    run = RunDir(directory)
    with RunLog(run) as log:
        result = train_dpo(
            model,
            pairs,
            ref_logprobs_of(model, pairs, max_tokens=512) if ref_logprobs is None else ref_logprobs,
            config,
            stage="dpo",
            seed=0,
            log=log,
            checkpoints=Checkpoints(run.checkpoints / "dpo", warn=pytest.fail),
            progress=progress or Progress(quiet=True),
        )
    return result, [json.loads(line) for line in run.metrics.read_text().splitlines()]


def plain_logprob(model, side):
    """Of a response, from whole logits, without padding or microbatches."""
    logits = model.causal_lm(input_ids=torch.tensor([side.prompt + side.response])).logits[0]
    logits = torch.cat([torch.full_like(logits[:, :1], -1e9), logits[:, 1:]], dim=1)  # PAD stands in no text
    logprobs = logits.log_softmax(1)
    start = len(side.prompt) - 1
    return sum(logprobs[start + step, token] for step, token in enumerate(side.response))


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_losses_by_hand():
    # h = (-10 + 11) - (-12 + 11) = 2, so beta h = 0.2, and the margin that IPO draws to is 1 / 0.2 = 5.
    given = f64(-10.0), f64(-12.0), f64(-11.0), f64(-11.0)
    right, wrong = 0.5981388693815918, 0.7981388693815918  # log(1 + exp(-0.2)) and log(1 + exp(0.2))
    assert dpo_loss(*given, beta=0.1).item() == pytest.approx(right, abs=1e-15)
    smoothed = dpo_loss(*given, beta=0.1, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.9 * right + 0.1 * wrong, abs=1e-15)
    assert dpo_loss(*given, beta=0.1, kind="ipo").item() == pytest.approx(9.0, abs=1e-12)


def oracle(chosen, rejected, ref_chosen, ref_rejected, *, beta, kind, label_smoothing):
    """As a likelihood: a Bradley-Terry choice between implicit rewards, which is an error with a known chance."""
    rewards = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    if kind == "ipo":
        return ((rewards[0] - rewards[1] - 0.5) / beta) ** 2
    highest = max(rewards)
    total = highest + math.log(sum(math.exp(reward - highest) for reward in rewards))
    return -(1 - label_smoothing) * (rewards[0] - total) - label_smoothing * (rewards[1] - total)


@pytest.mark.parametrize(("kind", "label_smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("ipo", 0.0)])
def test_losses_and_their_gradients_are_those_of_an_oracle(kind, label_smoothing):
    generator = torch.Generator().manual_seed(0)
    given = [-30 * torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(4)]
    options = {"beta": 0.3, "kind": kind, "label_smoothing": label_smoothing}
    chosen, rejected = (tensor.clone().requires_grad_() for tensor in given[:2])
    loss = dpo_loss(chosen, rejected, *given[2:], **options)
    torch.autograd.backward(loss.sum())
    step = 1e-5
    for row in range(5):
        numbers = [tensor[row].item() for tensor in given]
        assert loss[row].item() == pytest.approx(oracle(*numbers, **options), rel=1e-12)
        for place, tensor in enumerate((chosen, rejected)):
            ends = [[x + sign * step * (at == place) for at, x in enumerate(numbers)] for sign in (1, -1)]
            slope = (oracle(*ends[0], **options) - oracle(*ends[1], **options)) / (2 * step)
            assert tensor.grad[row].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_a_pair_of_equal_responses_pulls_at_nothing():
    same = f64(-7.0).requires_grad_()
    for kind in ("sigmoid", "ipo"):
        torch.autograd.backward(dpo_loss(same, same, f64(-6.0), f64(-6.0), beta=0.1, kind=kind))
        assert same.grad.item() == 0.0


def test_loss_far_from_the_reference_is_finite():
    chosen = f64(-1e5).requires_grad_()
    loss = dpo_loss(chosen, f64(0.0), f64(0.0), f64(-1e5), beta=1.0)
    torch.autograd.backward(loss)
    assert loss.item() == 2e5 and chosen.grad.item() == -1.0


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ShapeError, match="ref_chosen"):
        dpo_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3, 1), torch.zeros(3), beta=0.1)


def test_label_smoothing_is_refused_where_it_would_do_nothing():
    with pytest.raises(ConfigError, match=r"label_smoothing = 0.1 is of loss = \"sigmoid\""):
        DpoConfig(loss="ipo", label_smoothing=0.1)


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def encoded(*preferences, max_tokens=64, max_prompt_tokens=8):
    rows = [Preference(Prompt(prompt), chosen, rejected) for prompt, chosen, rejected in preferences]
    return encode_dpo_pairs(rows, tiny.encoder(), max_tokens=max_tokens, max_prompt_tokens=max_prompt_tokens)


def test_sides_end_with_eos_and_an_empty_response_is_eos_alone():
    assert encoded(("ab", "cd", "")) == ([pair([2, 3], [4, 5, 1], [1])], 0)


def test_prompts_lose_their_beginning_responses_their_end_and_pairs_without_any_are_left_out():
    assert encoded(("abc", "de", "f"), max_prompt_tokens=2, max_tokens=4) == ([pair([3, 4], [5, 6], [7, 1])], 1)
    assert encoded(("abc", "d", "f"), max_prompt_tokens=2) == ([pair([3, 4], [5, 1], [7, 1])], 1)
    assert encoded(("abcdef", "ghi", "jkl"), ("ab", "c", "d"), max_tokens=4) == ([pair([2, 3], [4, 1], [5, 1])], 1)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("microbatch_tokens", [1, 4096])
def test_gradient_is_of_the_mean_over_pairs_however_they_are_cut(tmp_path, microbatch_tokens):
    model, reference = tiny.language_model(0), tiny.language_model(5)
    losses = []
    with torch.no_grad():
        ref = torch.stack([torch.stack([plain_logprob(reference, s) for s in (p.chosen, p.rejected)]) for p in PAIRS])
    for each, (ref_chosen, ref_rejected) in zip(PAIRS, ref.tolist(), strict=True):
        chosen, rejected = plain_logprob(model, each.chosen), plain_logprob(model, each.rejected)
        losses.append((1 + (-0.1 * (chosen - ref_chosen - rejected + ref_rejected)).exp()).log())
    expected = torch.stack(losses).mean()
    torch.autograd.backward(expected)
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}

    trained = tiny.language_model(0)
    before = {name: weight.detach().clone() for name, weight in trained.named_parameters()}
    own_ref = ref_logprobs_of(reference, PAIRS, max_tokens=microbatch_tokens)
    torch.testing.assert_close(own_ref, ref)
    config = settings(microbatch_tokens=microbatch_tokens)
    _, (row,) = train(trained, PAIRS, config, tmp_path, ref_logprobs=own_ref)
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.01
    for name, weight in trained.named_parameters():
        torch.testing.assert_close(before[name] - weight.detach(), gradients[name], rtol=1e-3, atol=1e-5)


def many_pairs(num):
    """The response that says its prompt's letter is preferred to one of another letter."""
    letters = torch.randint(2, 13, (num, 3), generator=torch.Generator().manual_seed(0)).tolist()
    return [pair([a, b], [a, 1], [13, c, 1]) for a, b, c in letters]


@pytest.mark.thorough
@pytest.mark.parametrize("kill_after", [1, 5])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kill_after):
    config = settings(epochs=2, minibatch_pairs=4, validation_share=0.2, checkpoint_minutes=1e-9, optim=OptimConfig())
    pairs = many_pairs(20)
    whole, resumed = tiny.language_model(), tiny.language_model()
    result, rows = train(whole, pairs, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny.language_model(), pairs, config, tmp_path / "killed", progress=tiny.Interrupting("dpo", kill_after))
    assert train(resumed, pairs, config, tmp_path / "killed") == (result, rows)
    for name, weight in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], weight), name


@pytest.mark.thorough
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_it_learns_what_is_preferred_and_ipo_stops_at_its_margin(tmp_path, loss):
    optim = OptimConfig(learning_rate=3e-3)
    config = settings(loss=loss, epochs=40, minibatch_pairs=16, optim=optim, validation_share=0.1)
    result, rows = train(tiny.language_model(), many_pairs(160), config, tmp_path)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert result["validation/accuracy"] == 1.0
    margin = rows[-1]["margin"]  # beta h; IPO draws h to 1 / (2 beta), so beta h to 1/2, and DPO goes on
    assert margin == pytest.approx(0.5, abs=0.1) if loss == "ipo" else margin > 0.8
