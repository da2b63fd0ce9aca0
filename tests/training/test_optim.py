"""AdamW over float32 masters, its schedule and its state."""

import math

import pytest
import torch
from torch import nn

from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import TrainingError
from rlhfkit.training import optim
from rlhfkit.training.optim import Optimizer, dithered, learning_rate_factor


class Two(nn.Module):
    """A matrix and a vector."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype))
        self.vector = nn.Parameter(torch.randn(4, generator=generator).to(dtype))


def made(model, *, num_updates=10, seed=0, **settings):
    config = OptimConfig(**{"learning_rate": 0.1, "schedule": "constant", "adam_eps": 1e-5, **settings})
    return Optimizer(model.named_parameters(), config, num_updates=num_updates, what="model", seed=seed)


def set_gradients(model, update, *, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 + update)
    for parameter in model.parameters():
        gradient = (scale * torch.randn(parameter.shape, generator=generator)).to(dtype)
        parameter.grad = None
        (parameter * gradient).sum().backward()


def adamw_by_hand(weights, gradients, *, rates, decays, betas, eps, max_norm):
    """Loshchilov & Hutter 2019, algorithm 2, on lists of numbers."""
    first = [0.0] * len(weights)
    second = [0.0] * len(weights)
    norms = []
    for update, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = math.sqrt(sum(g * g for g in gradient))
        norms.append(norm)
        scale = min(1.0, max_norm / (norm + 1e-6))
        for i, g in enumerate(gradient):
            g *= scale
            first[i] = betas[0] * first[i] + (1 - betas[0]) * g
            second[i] = betas[1] * second[i] + (1 - betas[1]) * g * g
            step = first[i] / (1 - betas[0] ** update) / (math.sqrt(second[i] / (1 - betas[1] ** update)) + eps)
            weights[i] = weights[i] - rate * decays[i] * weights[i] - rate * step
    return weights, norms


def test_a_state_from_before_the_first_update_takes_later_moments_away():
    model = Two()
    optimizer = made(model)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def first_update():
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        set_gradients(model, 0)
        optimizer.step()
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    expected = first_update()
    set_gradients(model, 1)
    optimizer.step()
    optimizer.load_state(before)
    assert set(optimizer.state()) == set(before)
    assert all(torch.equal(weight, expected[name]) for name, weight in first_update().items())


def test_updates_equal_the_algorithm_written_out():
    model = Two()
    optimizer = made(
        model,
        schedule="linear",
        warmup_share=0.2,
        weight_decay=0.3,
        adam_betas=(0.8, 0.95),
        adam_eps=1e-3,
        max_grad_norm=4.2,
    )
    start = torch.cat([model.matrix.detach().flatten(), model.vector.detach()]).tolist()
    gradients, norms = [], []
    for update in range(10):
        set_gradients(model, update)
        gradients.append(torch.cat([model.matrix.grad.flatten(), model.vector.grad]).tolist())
        norms.append(optimizer.step())
    weights, expected_norms = adamw_by_hand(
        start,
        gradients,
        # 2 of 10 updates rise, 8 fall: 1/3 2/3 | 8/8 7/8 … 1/8
        rates=[0.1 / 3, 0.2 / 3, *(0.1 * left / 8 for left in range(8, 0, -1))],
        decays=[0.3] * 12 + [0.0] * 4,
        betas=(0.8, 0.95),
        eps=1e-3,
        max_norm=4.2,
    )
    found = torch.cat([model.matrix.detach().flatten(), model.vector.detach()])
    torch.testing.assert_close(found, torch.tensor(weights), atol=1e-5, rtol=1e-5)  # ten updates in float32
    assert norms == pytest.approx(expected_norms, rel=1e-5)
    assert max(norms) > 4.2 > min(norms)


def test_gradients_are_gone_after_an_update():
    model = Two()
    optimizer = made(model)
    set_gradients(model, 0)
    optimizer.step()
    assert model.matrix.grad is None
    assert model.vector.grad is None


def test_weight_decay_is_of_matrices_only():
    model = Two()
    before = model.matrix.detach().clone(), model.vector.detach().clone()
    optimizer = made(model, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.matrix.detach(), 0.95 * before[0])
    assert torch.equal(model.vector, before[1])


@pytest.mark.parametrize(
    ("schedule", "warmup_share", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("linear", 1.0, [0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_schedules_have_these_values(schedule, warmup_share, expected):
    config = OptimConfig(schedule=schedule, warmup_share=warmup_share)
    assert [learning_rate_factor(config, update, 4) for update in range(4)] == pytest.approx(expected)


# ── masters ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_small_updates_of_bfloat16_weights_add_up():
    model = Two(torch.bfloat16)
    with torch.no_grad():
        model.vector.fill_(1.0)
    optimizer = made(model, learning_rate=1e-6, adam_eps=1e-12, num_updates=3000)
    start = optimizer.masters["vector"].detach().clone()
    for _ in range(3000):
        model.vector.sum().backward()
        optimizer.step()
        if optimizer.updates_done == 1:
            assert model.vector.tolist() == [1.0] * 4
    # Adam's step is the learning rate while the gradient is constant, 0.003 in all, and the next bfloat16 below 1 is
    # 0.00390625 away. A weight that is updated itself would have rounded every step away.
    assert set(model.vector.tolist()) <= {1.0, 0.99609375}
    assert (optimizer.masters["vector"] - start).tolist() == pytest.approx([-0.003] * 4, rel=0.05)
    assert model.vector.dtype == torch.bfloat16


def test_bfloat16_weights_are_their_masters_rounded():
    rough, exact = Two(torch.bfloat16), Two(torch.bfloat16).float()
    optimizers = made(rough), made(exact)
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            parameter.copy_(optimizers[0].masters[name])
    for update in range(5):
        for model, optimizer in zip((rough, exact), optimizers, strict=True):
            set_gradients(model, update, dtype=next(model.parameters()).dtype)
            if model is exact:  # the gradient that bfloat16 can hold
                for parameter in model.parameters():
                    parameter.grad = parameter.grad.bfloat16().float()
            optimizer.step()
    assert torch.equal(rough.matrix, exact.matrix.bfloat16())
    assert torch.equal(rough.vector, exact.vector.bfloat16())


@pytest.mark.parametrize("learning_rate", [1e-6, 1e-5])
def test_weights_move_as_far_as_their_masters_from_the_first_update_on(learning_rate):
    model = nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.normal_(0.02, 0.001, generator=torch.Generator().manual_seed(1))
    before = model.weight.detach().clone()
    optimizer = made(model, learning_rate=learning_rate, adam_eps=1e-12)
    assert torch.equal(model.weight, before)
    for update in range(1, 4):
        model.weight.sum().backward()
        optimizer.step()
        moved = (model.weight.double() - before.double()).mean().item()
        assert moved == pytest.approx(-update * learning_rate, rel=0.05)


def test_dithered_numbers_fill_the_interval_that_rounds_to_theirs():
    weight = torch.tensor([1.0, -1.5, 3e-5, 0.0, -0.0, 255.0, torch.inf, -torch.inf]).bfloat16()
    dice = torch.Generator().manual_seed(0)
    seen = torch.stack([dithered(weight, dice) for _ in range(2000)])
    assert torch.equal(seen.bfloat16(), weight.expand(2000, -1))
    # The neighbours of 1 in bfloat16 are 1 - 2⁻⁸ and 1 + 2⁻⁷, those of -1.5 and 255 are 2⁻⁷ and 1 away.
    low, high = seen.min(0).values, seen.max(0).values
    assert (low[0].item(), high[0].item()) == pytest.approx((1 - 2**-9, 1 + 2**-8), abs=1e-5)
    assert (low[1].item(), high[1].item()) == pytest.approx((-1.5 - 2**-8, -1.5 + 2**-8), abs=1e-5)
    assert (low[5].item(), high[5].item()) == pytest.approx((254.5, 255.5), abs=2e-3)
    assert not seen[:, 3:5].any()


def test_masters_begin_elsewhere_with_another_seed():
    first, again, other = (made(Two(torch.bfloat16), seed=seed).masters["matrix"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_gradients_of_several_backward_passes_add_up_in_float32():
    model = Two(torch.bfloat16)
    optimizer = made(model, max_grad_norm=1e9)
    for gradient in (256.0, 1.0):
        (gradient * model.vector[0]).backward()
    assert optimizer.step() == 257.0  # between 256 and 258 there is no bfloat16


def test_gradients_can_be_dropped_by_name():
    model = Two(torch.bfloat16)
    optimizer = made(model, max_grad_norm=1e9)
    (3 * model.vector[0] + 4 * model.matrix[0, 0]).backward()
    optimizer.forget_gradients(lambda name: name == "matrix")
    assert optimizer.step() == 3.0


def test_float32_weights_have_no_masters():
    model = Two()
    assert not [name for name in made(model).state() if name.endswith("master")]


# ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_put_back_goes_on_bit_for_bit(dtype):
    settings = {"schedule": "cosine", "weight_decay": 0.1}
    model = Two(dtype)
    optimizer = made(model, **settings)
    for update in range(4):
        set_gradients(model, update, dtype=dtype)
        optimizer.step()

    other = Two(dtype)
    other.load_state_dict({name: weight.clone() for name, weight in model.state_dict().items()})
    resumed = made(other, **settings)
    resumed.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()})
    assert resumed.learning_rate == optimizer.learning_rate

    for update in range(4, 8):
        for each, its in ((model, optimizer), (other, resumed)):
            set_gradients(each, update, dtype=dtype)
            its.step()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(other.named_parameters())[name])
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_a_fresh_state_can_be_put_back_too():
    model = Two()
    resumed = made(Two())
    resumed.load_state(made(model).state())
    assert resumed.updates_done == 0


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    model = Two()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = made(model)
    set_gradients(model, 0)
    model.vector.grad[2] = bad
    with pytest.raises(TrainingError, match=r"gradient of the model is (nan|inf) at update 0.*lower the learning rate"):
        optimizer.step()
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert optimizer.updates_done == 0


def test_frozen_weights_are_left_out():
    model = Two()
    model.matrix.requires_grad_(False)
    before = model.matrix.clone()
    optimizer = made(model, weight_decay=0.5)
    model.vector.grad = torch.ones(4)
    optimizer.step()
    assert torch.equal(model.matrix, before)
    assert set(optimizer.state()) == {"updates_done", "vector/step", "vector/exp_avg", "vector/exp_avg_sq"}


@pytest.mark.gpu
def test_an_optimizer_put_back_on_a_gpu_goes_on_bit_for_bit():
    model, other = Two().cuda(), Two().cuda()
    optimizer, resumed = made(model), made(other)
    for update in range(4):
        generator = torch.Generator().manual_seed(update)
        if update == 2:
            other.load_state_dict(model.state_dict())
            resumed.load_state({name: tensor.cpu() for name, tensor in optimizer.state().items()})
        for each, its in ((model, optimizer), (other, resumed))[: 1 + (update >= 2)]:
            generator.manual_seed(update)
            for parameter in each.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).cuda()
            its.step()
    assert torch.equal(model.matrix, other.matrix)


def test_the_schedule_step_drops_now_and_then():
    config = OptimConfig(schedule="step", step_updates=2, step_factor=0.5)
    assert [learning_rate_factor(config, update, 6) for update in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_the_norm_of_parted_gradients_is_added_up_in_the_order_of_the_weights(monkeypatch):
    """In another order it differs in the last bit, and a set of names has another order in each process."""
    added = []

    def total_norm(gradients):
        added.append([gradient.item() for gradient in gradients])
        return torch.tensor(1.0)

    module = nn.ParameterDict({f"weight {number}": nn.Parameter(torch.zeros(1)) for number in range(20)})
    optimizer = made(module)
    for number, master in enumerate(optimizer.masters.values()):
        master.grad = torch.tensor([float(number)])
    monkeypatch.setattr(optim, "is_parted", lambda parameter: True)
    monkeypatch.setattr(nn.utils, "get_total_norm", total_norm)
    optimizer._total_norm()
    assert added == [[], [float(number) for number in range(20)]]
