"""Clipping: what bounds the influence of one patient, whatever that patient's records are."""

import math
from typing import Final

import torch

STABILITY: Final = 0.01


def clip_l2(vectors: torch.Tensor, *, clip_norm: float) -> torch.Tensor:
    """The rows of `vectors` as float64, each scaled to an L2 norm of at most `clip_norm`.

    Args:
        vectors: [rows, coordinates], one row per patient, any floating dtype.
        clip_norm: the bound C, positive and finite.

    Guarantees:
        The norm of a row never exceeds C by more than float64 rounding (1e-14 relative). A norm
        computed in a narrower type can exceed it: 1.0055 C was measured in bfloat16.
        A row within the bound is unchanged; zero stays zero.
        A row with a NaN or an infinity, or whose norm overflows, becomes exactly zero: it is
        chosen away by where(), because zero times NaN is NaN.
        A row never depends on another row.

    Raises:
        ValueError: C is not positive and finite, or `vectors` is not a matrix of real numbers.

    Source: Abadi et al. 2016, algorithm 1.
    """
    wide, norms = _measured(vectors)
    scaled = wide * clip_factors(norms, clip_norm=clip_norm)
    return torch.where(torch.isfinite(norms), scaled, torch.zeros_like(scaled))


def clip_factors(norms: torch.Tensor, *, clip_norm: float) -> torch.Tensor:
    """What a row of each norm is multiplied by: min(1, C / norm), and 0 where it is not finite.

    Who multiplies must choose away a row with factor 0 that is not finite: 0 times NaN is NaN.

    Raises:
        ValueError: C is not positive and finite.
    """
    _check_bound(clip_norm)
    # A norm of zero gives C / 0 = inf, which the clamp turns into 1.
    factors = torch.clamp(clip_norm / norms, max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def normalise_factors(norms: torch.Tensor, *, clip_norm: float) -> torch.Tensor:
    """C / (norm + 0.01) for each row, and 0 where the norm is not finite; see `clip_factors`."""
    _check_bound(clip_norm)
    factors = clip_norm / (norms + STABILITY)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def normalise_l2(vectors: torch.Tensor, *, clip_norm: float) -> torch.Tensor:
    """The rows of `vectors` as float64, each scaled to C |g| / (|g| + 0.01), below C.

    Guarantees and errors are those of `clip_l2`, except that a row within the bound changes too:
    there is no clip norm to tune, C only scales what leaves. Zero stays zero.

    Source: Bu et al. 2023, "Automatic Clipping", equation AUTO-S with stability constant 0.01.
    """
    wide, norms = _measured(vectors)
    scaled = wide * normalise_factors(norms, clip_norm=clip_norm)
    return torch.where(torch.isfinite(norms), scaled, torch.zeros_like(scaled))


def _check_bound(clip_norm: float) -> None:
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ValueError(f"clip norm: expected a positive finite number, found {clip_norm}")


def _measured(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as float64 and their norms [rows, 1]."""
    if vectors.dim() != 2 or not vectors.is_floating_point():
        raise ValueError(
            f"vectors: expected [rows, coordinates] of real numbers, "
            f"found {vectors.dtype} of {vectors.dim()} dimensions"
        )
    wide = vectors.to(torch.float64)
    return wide, torch.linalg.vector_norm(wide, dim=1, keepdim=True)
