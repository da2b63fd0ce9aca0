import math

import pytest
import torch

from rlhfkit.errors import ShapeError
from rlhfkit.ppo import masked_mean, masked_sum, masked_var

X = torch.tensor([[1.0, 2.0, 30.0], [6.0, 70.0, 800.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_only_masked_entries_count():
    assert masked_sum(X, MASK) == 9.0
    assert masked_mean(X, MASK) == 3.0
    # deviations -2, -1, 3; squares 4 + 1 + 9 over 3, not over 2
    assert masked_var(X, MASK) == pytest.approx(14 / 3)


def test_sum_along_a_dimension_is_per_sequence():
    assert masked_sum(X, MASK, dim=1).tolist() == [3.0, 6.0]


def test_a_given_denominator_replaces_the_count():
    assert masked_mean(X, MASK, 18) == 0.5
    assert masked_mean(X, MASK, torch.tensor(18)) == 0.5


def test_mean_of_nothing_is_zero():
    nothing = torch.zeros_like(MASK)
    assert masked_mean(X, nothing) == 0.0
    assert masked_var(X, nothing) == 0.0


def test_variance_of_one_entry_is_zero():
    assert masked_var(torch.tensor([5.0, 9.0]), torch.tensor([True, False])) == 0.0


@pytest.mark.parametrize("reduce", [masked_sum, masked_mean, masked_var])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_outside_the_mask_leaks_neither_into_the_value_nor_into_the_gradient(reduce, bad):
    x = X.masked_fill(~MASK, bad).requires_grad_()
    result = reduce(x, MASK)
    result.backward()
    assert result == reduce(X, MASK)
    assert x.grad.isfinite().all()
    assert (x.grad[~MASK] == 0).all()


@pytest.mark.parametrize("reduce", [masked_sum, masked_mean, masked_var])
def test_nan_inside_the_mask_is_not_hidden(reduce):
    assert reduce(torch.tensor([1.0, math.nan]), torch.tensor([True, True])).isnan()


@pytest.mark.parametrize("reduce", [masked_sum, masked_mean, masked_var])
def test_half_precision_is_reduced_in_float32_and_double_stays(reduce):
    # 2049 ones add up to 2048 in bfloat16 and in float16, whose integers end there
    ones = torch.ones(2049, dtype=torch.bfloat16)
    mask = torch.ones(2049, dtype=torch.bool)
    assert reduce(ones, mask).dtype == torch.float32
    assert reduce(ones.double(), mask).dtype == torch.float64
    assert reduce(ones, mask) == reduce(ones.double(), mask)


def test_variance_of_half_precision_is_taken_in_float32():
    x = torch.tensor([1.0, 1.0078125, 1.015625], dtype=torch.bfloat16)  # exact in bfloat16; their mean is not
    assert masked_var(x, torch.ones(3, dtype=torch.bool)) == pytest.approx(2 / 3 * 0.0078125**2, rel=1e-5)


@pytest.mark.parametrize("reduce", [masked_sum, masked_mean, masked_var])
def test_a_mask_of_another_shape_is_refused(reduce):
    with pytest.raises(ShapeError, match=r"x \(2, 3\), mask \(2, 3, 1\): expected one shape"):
        reduce(X, MASK[..., None])
    with pytest.raises(ShapeError, match=r"mask \(3,\)"):
        reduce(X, MASK[0])


@pytest.mark.parametrize("reduce", [masked_sum, masked_mean, masked_var])
def test_a_mask_of_numbers_is_refused(reduce):
    with pytest.raises(ShapeError, match=r"mask has dtype torch.int64; expected torch.bool"):
        reduce(X, MASK.long())
