"""Proof by trial that a batch keeps patients apart to the last bit, before any patient is read.

Kernels round a row by the number of rows, its place among them and its alignment. The number is
fixed by the geometry and fills whole vectors; the other two are tried here, for this model,
geometry, machine and number of threads. A kernel of the list below does the same operations
whatever the numbers are, so that two places that round alike on numbers of full precision round
alike on all.

Not proven here: that a kernel has no branch that only other numbers reach. Operations known to
have one that spans neighbours (sine and cosine of vectors) are not on the list.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fedward_client.tasks.task import ExampleRecords, LossFunction
from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_common.errors import ModelRefused

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_MAGNITUDES = (1.0, 1e3)
_EXTREMES = (float("nan"), float("inf"), -3e38, 1e-42, 0.0)
_EVERYWHERE = 8
"""So many patients are tried in all places. Two were too few: a place that rounded 3 of 100 numbers
otherwise was missed in every second geometry."""
_TOLERANCE = 1e-4
"""Relative; as in the model check. Bits are compared among places, this with plain autograd."""

_NAMES = """
_adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d
_adaptive_avg_pool3d_backward _log_softmax _log_softmax_backward_data _softmax
_softmax_backward_data _to_copy _unsafe_view abs add add_ addcmul addcmul_ addmm addmm_ alias arange
avg_pool1d avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward baddbmm
binary_cross_entropy_with_logits bmm cat chunk clamp clamp_min clone constant_pad_nd convolution
convolution_backward copy_ detach diagonal div elu elu_backward embedding empty empty_like
empty_strided eq exp expand fill fill_ flip full full_like gather ge gelu gelu_backward gt hardtanh
hardtanh_backward index_add_ index_select isfinite le leaky_relu leaky_relu_backward
linalg_vector_norm log log1p log_sigmoid_backward log_sigmoid_forward logical_and logical_not lt
masked_fill max_pool2d_with_indices max_pool2d_with_indices_backward max_pool3d_with_indices
max_pool3d_with_indices_backward maximum mean minimum mm mul mul_ native_batch_norm
native_batch_norm_backward native_group_norm native_group_norm_backward native_layer_norm
native_layer_norm_backward ne neg new_empty new_full new_zeros nll_loss2d_backward
nll_loss2d_forward nll_loss_backward nll_loss_forward ones ones_like permute pow reciprocal relu
repeat rsqrt rsub scalar_tensor scatter select select_backward sigmoid sigmoid_ sigmoid_backward
sign silu silu_backward slice slice_backward smooth_l1_loss smooth_l1_loss_backward softplus
softplus_backward split split_with_sizes sqrt squeeze stack sub sum t tanh tanh_backward
threshold_backward transpose unbind unfold unsafe_split unsqueeze upsample_nearest1d
upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
upsample_nearest3d_backward view where zero_ zeros zeros_like
"""
_OPERATIONS = frozenset(_NAMES.split())
"""Operations whose kernels do the same work on any numbers. Batch norms are here because torch
computes InstanceNorm with them, records as channels; the model check refuses them as layers."""
_READING = frozenset(
    ("numpy", "tolist", "data_ptr", "storage", "untyped_storage", "__array__", "__dlpack__")
)
"""Ways to a tensor's numbers that are no operations."""


def check_slots(
    back_end: BookkeepingBackEnd, model: nn.Module, *, loss: LossFunction, examples: ExampleRecords
) -> None:
    """Returns when a patient's gradient has the same bits in every place and in any company.

    The model gets made-up weights for the check and its own back afterwards.

    1. Only operations of the list are used, and no number is read out of a tensor.
    2. Every place gives plain autograd's gradient of its own patient, and a sum is their sum.
    3. One patient in all places has the same bits in each: gradients or their factors, and norms.
    4. Moved to another place, with other company and with empty places, patients keep their bits.
    5. Company of NaN, infinities, huge and subnormal numbers changes no bit of a patient.

    Raises:
        ModelRefused: one of the five does not hold here.
    """
    reference = LoopBackEnd(model, loss=loss)
    with _made_up_weights(model), _same_masks():
        for magnitude in _MAGNITUDES:
            people = _people(back_end, examples, magnitude=magnitude)
            starts = torch.cumsum(people.sizes, 0) - people.sizes
            batch = back_end.batch(people, sizes=people.sizes, starts=starts)
            with _NoReading(), _Recorded() as recorded:
                base = back_end.evidence(batch)
            unknown = sorted(recorded.names - _OPERATIONS)  # 1
            if unknown:
                raise _refusal(f"the operation {unknown[0]}, which is not on its list")
            if magnitude == _MAGNITUDES[0]:
                _check_values(back_end, people, reference)  # 2
            _check_places(back_end, people, base)  # 3
            _check_moves(back_end, people, base)  # 4
            _check_company(back_end, people, base)  # 5


def _check_values(back_end: BookkeepingBackEnd, people: Chunk, reference: LoopBackEnd) -> None:
    found = torch.cat(list(back_end.patient_gradients(people)))
    wide = torch.cat(list(reference.patient_gradients(people))).double()
    off = torch.linalg.vector_norm(found.double() - wide, dim=1)
    allowed = _TOLERANCE * torch.linalg.vector_norm(wide, dim=1)
    finite = torch.isfinite(wide).all(dim=1)
    if not bool((off <= allowed)[finite].all()):
        raise _refusal("a gradient that is not plain autograd's; something mixes records")
    whole = wide.sum(dim=0)
    summed = torch.zeros_like(whole)
    back_end.add_clipped(summed, people, torch.ones_like)
    sizes = torch.linalg.vector_norm(wide, dim=1).sum()
    if bool(finite.all()) and bool(torch.linalg.vector_norm(summed - whole) > _TOLERANCE * sizes):
        raise _refusal("a sum that is not the sum of its patients' gradients")


def _check_places(back_end: BookkeepingBackEnd, people: Chunk, base: torch.Tensor) -> None:
    slots = len(people.sizes)
    tried = range(min(_EVERYWHERE, slots))
    for who in sorted({number * (slots - 1) // max(1, len(tried) - 1) for number in tried}):
        rows = _rows(back_end, _chosen(people, [who] * slots))
        _check_bits(rows, base[who].expand_as(rows), "in another place")


def _check_moves(back_end: BookkeepingBackEnd, people: Chunk, base: torch.Tensor) -> None:
    slots = len(people.sizes)
    everybody = list(range(slots))
    orders = [
        everybody[1:] + everybody[:1],
        everybody[::-1],
        everybody[: max(1, slots // 2)],
        everybody[1:],
        everybody[-1:],
    ]
    for order in orders:
        if order:
            _check_bits(_rows(back_end, _chosen(people, order)), base[order], "in other company")


def _check_company(back_end: BookkeepingBackEnd, people: Chunk, base: torch.Tensor) -> None:
    if not people.features.is_floating_point():
        return
    slots = len(people.sizes)
    owner = torch.repeat_interleave(torch.arange(slots), people.sizes)
    for number, value in enumerate(_EXTREMES):
        strange = (owner + number) % 2 == 0
        features = people.features.clone()
        features[strange.to(features.device)] = value
        rows = _rows(back_end, Chunk(features=features, labels=people.labels, sizes=people.sizes))
        ordinary = [slot for slot in range(slots) if (slot + number) % 2]
        if ordinary:
            _check_bits(rows[ordinary], base[ordinary], "beside extreme numbers")


def _check_bits(found: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    # As integers: a NaN equals itself and a zero differs from a minus zero.
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    if not torch.equal(found.contiguous().view(kind), expected.contiguous().view(kind)):
        raise _refusal(f"a patient whose gradient has other bits {where}")


def _refusal(found: str) -> ModelRefused:
    return ModelRefused(
        f"back end 'bookkeeping': expected a batch in which patients cannot touch each other, "
        f"found {found}; choose backend = 'loop' or 'auto' in site.toml"
    )


def _people(back_end: BookkeepingBackEnd, examples: ExampleRecords, *, magnitude: float) -> Chunk:
    """A full batch of made-up patients, from one record up to all that a place takes."""
    slots, most = back_end.geometry.slots, back_end.geometry.records
    sizes = torch.arange(slots) % most + 1
    features, labels = examples(int(sizes.sum()))
    if features.is_floating_point():
        features = features * magnitude
    return Chunk(features=features, labels=labels, sizes=sizes)


def _chosen(people: Chunk, order: list[int]) -> Chunk:
    """The patients of `order`, each as often and where it says."""
    ends = torch.cumsum(people.sizes, 0).tolist()
    starts = [0, *ends[:-1]]
    rows = torch.cat([torch.arange(starts[who], ends[who]) for who in order])
    rows = rows.to(people.features.device)
    return Chunk(
        features=people.features[rows],
        labels=people.labels[rows],
        sizes=people.sizes[torch.tensor(order)],
    )


def _rows(back_end: BookkeepingBackEnd, chunk: Chunk) -> torch.Tensor:
    """What each patient of at most one batch leaves in a sum, bit for bit."""
    starts = torch.cumsum(chunk.sizes, 0) - chunk.sizes
    batch = back_end.batch(chunk, sizes=chunk.sizes, starts=starts)
    return back_end.evidence(batch)[: len(chunk.sizes)]


class _NoReading(TorchFunctionMode):
    """Refuses, inside the block, what reads a tensor's numbers where no operation shows it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READING:
            raise _refusal(f"{name}(), by which it may decide by the numbers of other patients")
        return func(*args, **(kwargs or {}))


class _Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no annotation
    """The names of all operations inside the block, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.names: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and True imports torch's compiler (two seconds)."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        space, _, name = str(func).partition(".")
        # Another library's operation keeps its whole name, which is on no list.
        self.names.add(name.split(".")[0] if space == "aten" else str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def _made_up_weights(model: nn.Module) -> Iterator[None]:
    """Weights of full precision inside the block: at zero or one, no rounding shows."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            index = torch.arange(parameter.numel(), dtype=torch.float64) + 1.0 + 17.0 * number
            spread = 2.0 * torch.frac(index.square() * _GOLDEN) - 1.0
            scale = 1.0 / math.sqrt(max(1, parameter[0].numel() if parameter.dim() else 1))
            parameter.copy_((scale * spread).view_as(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])


@contextmanager
def _same_masks() -> Iterator[None]:
    """torch's own generators as they were; they have no part in sampling or noise."""
    with torch.random.fork_rng():
        yield
