import math

import numpy as np
import pytest
import torch

from rlhfkit.errors import ConfigError, ShapeError
from rlhfkit.ppo import logits_to_logprobs, token_logprobs
from tests.oracles import ppo as oracle

NUM_TOKENS, WIDTH, VOCABULARY = 11, 6, 17


class RecordingHead(torch.nn.Linear):
    """A head that remembers for how many positions it was asked at a time."""

    def __init__(self, dtype=torch.float64):
        super().__init__(WIDTH, VOCABULARY, dtype=dtype)
        self.sizes = []
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, hidden):
        self.sizes.append(len(hidden))
        return super().forward(hidden)


def some_tokens(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator)


def test_logprob_and_entropy_of_known_odds():
    # probabilities 1/2, 1/4, 1/4: entropy 1.5 bits
    hidden = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    logprobs, entropy = token_logprobs(hidden, torch.nn.Identity(), torch.tensor([1]))
    assert logprobs.item() == pytest.approx(math.log(0.25))
    assert entropy.item() == pytest.approx(1.5 * math.log(2))


def test_temperature_divides_the_logits():
    # at temperature 1/2 the odds are squared: 4, 1, 1
    hidden = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    logprobs, entropy = token_logprobs(hidden, torch.nn.Identity(), torch.tensor([0]), temperature=0.5)
    assert logprobs.item() == pytest.approx(math.log(4 / 6))
    assert entropy.item() == pytest.approx(-(4 / 6) * math.log(4 / 6) - 2 * (1 / 6) * math.log(1 / 6))
    assert logits_to_logprobs(hidden, torch.tensor([0]), temperature=0.5).item() == logprobs.item()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 1024])
def test_logprobs_and_entropy_equal_numpy(temperature, chunk_tokens):
    hidden, targets = some_tokens()
    head = RecordingHead()
    logprobs, entropy = token_logprobs(hidden, head, targets, temperature=temperature, chunk_tokens=chunk_tokens)
    logits = hidden.numpy() @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    expected_logprobs, expected_entropy = oracle.token_logprobs(logits, targets.numpy(), temperature)
    np.testing.assert_allclose(logprobs.detach(), expected_logprobs, rtol=1e-12)
    np.testing.assert_allclose(entropy.detach(), expected_entropy, rtol=1e-12)


def loss_and_gradients(chunk_tokens):
    hidden, targets = some_tokens()
    hidden.requires_grad_()
    head = RecordingHead()
    logprobs, entropy = token_logprobs(hidden, head, targets, temperature=0.7, chunk_tokens=chunk_tokens)
    weights = torch.linspace(-1, 1, NUM_TOKENS, dtype=torch.float64)
    (weights * logprobs + weights.flip(0) * entropy).sum().backward()
    return logprobs, entropy, hidden.grad, head.weight.grad, head.bias.grad


@pytest.mark.parametrize("chunk_tokens", [1, 4, 10, 11])
def test_chunks_change_neither_values_nor_gradients(chunk_tokens):
    for chunked, whole in zip(loss_and_gradients(chunk_tokens), loss_and_gradients(1024), strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-12)


def test_gradients_equal_finite_differences():
    hidden, targets = some_tokens()
    hidden = hidden[:3].requires_grad_()
    head = RecordingHead()
    assert torch.autograd.gradcheck(
        lambda hidden: token_logprobs(hidden, head, targets[:3], temperature=0.7, chunk_tokens=2), hidden
    )


def test_the_head_never_sees_more_than_a_chunk():
    hidden, targets = some_tokens()
    head = RecordingHead()
    token_logprobs(hidden, head, targets, chunk_tokens=4)
    assert head.sizes == [4, 4, 3]


def test_chunks_keep_no_logits_for_the_gradient():
    hidden, targets = some_tokens()
    head = RecordingHead()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        token_logprobs(hidden, head, targets, chunk_tokens=4)
    assert not [shape for shape in kept if shape[-1:] == (VOCABULARY,)]


def test_without_gradient_nothing_is_computed_twice():
    hidden, targets = some_tokens()
    head = RecordingHead()
    with torch.no_grad():
        logprobs, _ = token_logprobs(hidden, head, targets, chunk_tokens=4)
    assert head.sizes == [4, 4, 3]
    assert not logprobs.requires_grad


@pytest.mark.parametrize("chunk_tokens", [4, 1024])
def test_entropy_can_be_left_out(chunk_tokens):
    hidden, targets = some_tokens()
    with_entropy, _ = token_logprobs(hidden, RecordingHead(), targets, chunk_tokens=chunk_tokens)
    logprobs, entropy = token_logprobs(hidden, RecordingHead(), targets, chunk_tokens=chunk_tokens, with_entropy=False)
    assert entropy is None
    assert torch.equal(logprobs, with_entropy)


def test_rollout_and_update_get_the_same_bits_from_the_same_logits():
    hidden, targets = some_tokens(torch.float32)
    head = RecordingHead(torch.float32)
    update, _ = token_logprobs(hidden, head, targets, temperature=0.7)
    rollout = logits_to_logprobs(head(hidden), targets, temperature=0.7)
    assert torch.equal(rollout, update)


def test_logits_of_any_leading_shape_give_logprobs_of_that_shape():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    logprobs = logits_to_logprobs(logits, targets)
    assert logprobs.shape == (2, 3)
    alone = logits_to_logprobs(logits[1, 2], targets[1, 2])
    torch.testing.assert_close(alone, logprobs[1, 2])


def test_half_precision_logits_are_normalised_in_float32():
    hidden, targets = some_tokens(torch.bfloat16)
    head = RecordingHead(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, head, targets, chunk_tokens=4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    logits = torch.tensor([[10.0, 10.0625]], dtype=torch.bfloat16)  # exact in bfloat16
    expected = -math.log(1 + math.exp(0.0625))
    assert logits_to_logprobs(logits, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-6)


def test_a_forbidden_token_disturbs_neither_entropy_nor_gradient():
    hidden = torch.tensor([[0.3, -0.2, 0.0]], requires_grad=True)

    def head(hidden):
        return hidden.masked_fill(torch.tensor([False, False, True]), -math.inf)

    logprobs, entropy = token_logprobs(hidden, head, torch.tensor([0]))
    (logprobs + entropy).sum().backward()
    expected_logprob, expected_entropy = oracle.token_logprobs([[0.3, -0.2]], [0], 1.0)
    assert logprobs.item() == pytest.approx(expected_logprob[0], rel=1e-6)
    assert entropy.item() == pytest.approx(expected_entropy[0], rel=1e-6)
    assert hidden.grad.isfinite().all()
    assert hidden.grad[0, 2] == 0


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0], [-1e4, 1e4]])
    logprobs, entropy = token_logprobs(logits, torch.nn.Identity(), torch.tensor([0, 0]))
    assert logprobs.tolist() == [0.0, -2e4]
    assert entropy.tolist() == [0.0, 0.0]


def test_no_tokens_give_no_logprobs():
    logprobs, entropy = token_logprobs(
        torch.zeros(0, WIDTH), RecordingHead(torch.float32), torch.zeros(0, dtype=torch.long)
    )
    assert logprobs.shape == entropy.shape == (0,)


def test_shapes_that_do_not_belong_together_are_refused():
    hidden, targets = some_tokens()
    with pytest.raises(ShapeError, match=r"hidden \(1, 11, 6\), targets \(11,\): expected \(N, H\) and \(N,\)"):
        token_logprobs(hidden[None], RecordingHead(), targets)
    with pytest.raises(ShapeError, match=r"targets \(11, 1\)"):
        token_logprobs(hidden, RecordingHead(), targets[:, None])
    with pytest.raises(ShapeError, match=r"logits \(2, 3, 5\), targets \(3,\): expected \(\.\.\., V\)"):
        logits_to_logprobs(torch.zeros(2, 3, 5), torch.zeros(3, dtype=torch.long))


def test_settings_without_sense_are_refused():
    hidden, targets = some_tokens()
    with pytest.raises(ConfigError, match="chunk_tokens 0: expected at least 1"):
        token_logprobs(hidden, RecordingHead(), targets, chunk_tokens=0)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="expected more than 0"):
            token_logprobs(hidden, RecordingHead(), targets, temperature=temperature)
