"""clip_l2 keeps what its docstring guarantees; tests/property has it over generated rows."""

import pytest
import torch

from fedward_common.privacy.clipping import clip_l2


def test_a_long_row_is_scaled_to_the_bound_and_keeps_its_direction() -> None:
    clipped = clip_l2(torch.tensor([[30.0, 40.0]]), clip_norm=5.0)

    torch.testing.assert_close(clipped, torch.tensor([[3.0, 4.0]], dtype=torch.float64))


def test_a_row_within_the_bound_and_a_zero_row_are_unchanged() -> None:
    rows = torch.tensor([[0.3, -0.4], [0.0, 0.0]])

    assert torch.equal(clip_l2(rows, clip_norm=5.0), rows.double())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_becomes_exactly_zero_and_spoils_no_other(value: float) -> None:
    clipped = clip_l2(torch.tensor([[1.0, value], [3.0, 4.0]]), clip_norm=10.0)

    assert clipped.tolist() == [[0.0, 0.0], [3.0, 4.0]]


def test_a_row_whose_square_overflows_float32_is_clipped_and_not_lost() -> None:
    clipped = clip_l2(torch.tensor([[3e38, -3e38]]), clip_norm=1.0)

    assert float(clipped.norm()) == pytest.approx(1.0, rel=1e-14)


def test_a_row_whose_norm_overflows_float64_becomes_zero() -> None:
    clipped = clip_l2(torch.tensor([[1e308, 1e308]], dtype=torch.float64), clip_norm=1.0)

    assert not bool(clipped.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 3.3])
def test_the_bound_holds_for_narrow_types_too(dtype: torch.dtype, clip_norm: float) -> None:
    """A norm computed in bfloat16 let 1.0055 C through."""
    rows = torch.linspace(-60.0, 60.0, 50 * 1000).reshape(50, 1000).to(dtype)

    clipped = clip_l2(rows, clip_norm=clip_norm)

    assert clipped.dtype == torch.float64
    assert float(clipped.norm(dim=1).max()) <= clip_norm * (1 + 1e-14)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_not_positive_and_finite_is_an_error(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip norm: expected a positive finite number"):
        clip_l2(torch.zeros(1, 2), clip_norm=clip_norm)


@pytest.mark.parametrize("vectors", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64)])
def test_anything_but_a_matrix_of_real_numbers_is_an_error(vectors: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected \\[rows, coordinates\\]"):
        clip_l2(vectors, clip_norm=1.0)
