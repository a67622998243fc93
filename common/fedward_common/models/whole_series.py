"""Recurrent layers that compute what Opacus' compute, all steps as one operation of autograd.

Importing this module imports Opacus; `dp_layers.dp_layer` does both when a model asks for it.
"""

from collections.abc import Callable
from typing import Any

import torch
from opacus.layers import DPGRU, DPLSTM
from opacus.layers.dp_rnn import RNNLinear
from torch import nn
from torch.jit._trace import is_tracing

from fedward_common.errors import ModelRefused

Observer = Callable[[nn.Module, torch.Tensor, torch.Tensor], None]
"""(cell, what goes into its two linear layers side by side [records, steps, inputs + hidden], a
tensor [records, steps, 4 * hidden]).

With respect to that tensor a gradient can be taken: of an LSTM that of the output of either linear
layer, as both are added up; of a GRU those of the cell's input from `ih`, of the reset and the
update gate (of either layer), and of the cell's input from `hh`, side by side.
"""


def refuse_steps(cell: nn.Module, _: object) -> None:
    """A hook on cells while an observer is set: it would not be told of this step.

    Raises:
        ModelRefused: always.
    """
    raise ModelRefused(
        f"{type(cell).__name__}: expected to be called by its layer alone, found a step of its "
        f"own; choose backend = 'loop' in site.toml"
    )


class _WholeSeries:
    """What `Lstm` and `Gru` share: Opacus' parameters and names, and its results to 1e-7 (float32).

    Where somebody must see single steps (hooks on the inner layers, as Opacus' engine sets them, or
    other layers in their place; dropout; packed sequences; a given state; autocast; a tracer) they
    go Opacus' own way.

    `observer`, where set, is told of each cell once and can take gradients with respect to the
    tensor that it is given; the parameters get none then. What it would not be told of is refused.
    """

    observer: Observer | None = None
    opacus: type[nn.Module]
    """The class that it stands for."""
    refuse_steps = staticmethod(refuse_steps)
    _run: Callable[..., Any]

    def _whole(self: Any, series: Any, state: Any) -> bool:
        """Whether nobody needs to see single steps.

        Raises:
            ModelRefused: somebody does, and an observer could not be told.
        """
        found = (
            state is None
            and isinstance(series, torch.Tensor)
            and series.dim() == 3
            and series.numel() > 0
            and not (self.dropout and self.training)
            and not torch.is_autocast_enabled(series.device.type)
            and not is_tracing()  # type: ignore[no-untyped-call]  # torch has no annotation
            and all(type(cell) is self.cell_type and _untouched(cell) for cell in self.cells)
        )
        if not found and self.observer is not None:
            raise ModelRefused(
                f"{type(self).__name__}: expected whole series from a zero state, without dropout "
                f"and with nothing on its inner layers, found another call; choose backend = "
                f"'loop' in site.toml"
            )
        return found

    def _layers(self: Any, series: torch.Tensor) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """The states of the last layer, and the last states of each layer and direction."""
        series = series.transpose(0, 1) if self.batch_first else series
        last = []
        for _, directions in self.iterate_layers(self.cells):
            found = []
            for direction, (cell,) in directions:
                states, *ends = self._cell_steps(cell, series.flip(0) if direction else series)
                found.append(states.flip(0) if direction else states)
                last.append([states[-1], *ends])
            series = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        return series.transpose(0, 1) if self.batch_first else series, last

    def _cell_steps(self: Any, cell: Any, series: torch.Tensor) -> list[torch.Tensor]:
        """All states [steps, records, hidden] of one cell over `series`, and its other last one."""
        parameters = [cell.ih.weight, cell.hh.weight]
        if self.bias:
            parameters += [cell.ih.bias, cell.hh.bias]
        else:
            parameters += [series.new_zeros(len(cell.ih.weight)) for _ in range(2)]
        if self.observer is None:
            states, *ends, _ = self._run(series, *parameters, None)
            return [states, *ends]
        steps, records = series.shape[:2]
        # One number, seen at every place: only its gradient is wanted, which is of full size.
        gates = series.new_zeros(()).expand(records, steps, 4 * self.hidden_size)
        gates = gates.detach().requires_grad_()
        frozen = [parameter.detach() for parameter in parameters]
        states, *ends, before = self._run(series, *frozen, gates.transpose(0, 1))
        inputs = torch.cat([series.detach(), before], dim=2)
        self.observer(cell, inputs.transpose(0, 1), gates)
        return [states, *ends]


def _untouched(cell: nn.Module) -> bool:
    """Whether the two inner layers are Opacus' own, and nobody listens to them or to the cell."""
    inner = list(cell.children())
    return all(type(layer) is RNNLinear for layer in inner) and not any(
        _hooked(layer) for layer in (cell, *inner)
    )


def _hooked(layer: nn.Module) -> bool:
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    others = [hook for kind in hooks for hook in kind.values() if hook is not refuse_steps]
    return bool(others) or "forward" in vars(layer)


# In both, with s the logistic function, tanh(x) = 2 s(2x) - 1: the cell's input is doubled with its
# weights, which is exact, and takes the one vectorised operation of the gates. Every operation is
# elementwise or a product of matrices with a record in each row, so that records stay apart.


class _LstmSteps(torch.autograd.Function):
    """The steps of an LSTM from zero states, and back."""

    @staticmethod
    def forward(
        ctx: Any,
        series: torch.Tensor,
        input_weight: torch.Tensor,
        state_weight: torch.Tensor,
        input_bias: torch.Tensor,
        state_bias: torch.Tensor,
        gates: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All h, the last c, and each step's h before it. `gates` is there for its gradient."""
        steps, records, _ = series.shape
        width = state_weight.shape[1]
        series = series.contiguous()
        active = _from_inputs(series, input_weight, input_bias + state_bias, of=4)
        recurrent = _doubled(state_weight, of=4).t().contiguous()
        h, c = (series.new_zeros(steps + 1, records, width) for _ in range(2))
        squashed = series.new_empty(steps, records, width)
        entering = series.new_empty(records, width)
        minus_one = series.new_full((), -1.0)
        tensors = (active, *active.chunk(4, dim=2), squashed, h[:-1], c[:-1], h[1:], c[1:])
        for step in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
            now, i, f, g, o, tanh, h_before, c_before, h_now, c_now = step
            now.addmm_(h_before, recurrent).sigmoid_()
            torch.add(minus_one, g, alpha=2.0, out=entering)
            torch.mul(i, entering, out=c_now).addcmul_(f, c_before)
            torch.mul(c_now, 2.0, out=tanh).sigmoid_()
            torch.add(minus_one, tanh, alpha=2.0, out=tanh)
            torch.mul(o, tanh, out=h_now)
        before = h[:-1]
        ctx.observed = gates is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(series, input_weight, state_weight, active, squashed, h, c)
        ctx.mark_non_differentiable(before)
        return h[1:], c[-1], before

    @staticmethod
    def backward(
        ctx: Any, back: torch.Tensor | None, last: torch.Tensor | None, _: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradient of each argument of `forward`."""
        _check_order()
        series, input_weight, state_weight, active, squashed, h, c = ctx.saved_tensors
        steps, records, width = squashed.shape
        if not ctx.observed:
            active = active.clone()  # for whoever goes back twice
        i, f, g, o = torch.split(active, width, dim=2)
        forget = f.contiguous()
        slope = torch.addcmul(o, h[1:], squashed, value=-1.0)  # o (1 - tanh(c)^2)
        entering = torch.add(series.new_full((), -1.0), g, alpha=2.0)
        # In place of each gate its derivative, times what dc (or dh, for o) is multiplied by.
        through = torch.ops.aten.sigmoid_backward.grad_input
        through(i * 4.0, g, grad_input=g)
        through(entering, i, grad_input=i)
        through(c[:-1], f, grad_input=f)
        through(squashed, o, grad_input=o)
        by_gate = active.view(steps, records, 4, width)
        if back is None:
            back = torch.zeros_like(squashed)
        tensors = (active, by_gate[:, :, :3], by_gate[:, :, 3], slope, forget, back)
        each = list(zip(*(tensor.unbind(0) for tensor in tensors), strict=True))
        later: torch.Tensor | None = None
        for now, of_c, of_h, slope_now, forget_now, here in reversed(each):
            dh = here if later is None else torch.addmm(here, later, state_weight)
            dc = dh * slope_now if last is None else torch.addcmul(last, dh, slope_now)
            of_c.mul_(dc.unsqueeze(1))
            of_h.mul_(dh)
            last, later = dc * forget_now, now
        found = _gradients(ctx.needs_input_grad, series, h[:-1], active, active, input_weight)
        return (*found, active if ctx.observed else None)


class _GruSteps(torch.autograd.Function):
    """The steps of a GRU from a zero state, and back."""

    @staticmethod
    def forward(
        ctx: Any,
        series: torch.Tensor,
        input_weight: torch.Tensor,
        state_weight: torch.Tensor,
        input_bias: torch.Tensor,
        state_bias: torch.Tensor,
        gates: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All h, and each step's h before it. `gates` is there for its gradient."""
        steps, records, _ = series.shape
        width = state_weight.shape[1]
        series = series.contiguous()
        active = _from_inputs(series, input_weight, input_bias, of=3)
        recurrent = _doubled(state_weight, of=3).t().contiguous()
        bias = _doubled(state_bias, of=3)
        h = series.new_zeros(steps + 1, records, width)
        entering, proposed = (series.new_empty(steps, records, width) for _ in range(2))
        from_state = series.new_empty(records, 3 * width)
        minus_one = series.new_full((), -1.0)
        both, cell = torch.split(active, [2 * width, width], dim=2)
        gates_of_state, cell_of_state = torch.split(from_state, [2 * width, width], dim=1)
        r_and_z = torch.split(both, width, dim=2)
        tensors = (both, *r_and_z, cell, entering, proposed, h[:-1], h[1:])
        for step in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
            rz, r, z, n, state, tanh, before_now, h_now = step
            torch.addmm(bias, before_now, recurrent, out=from_state)
            rz.add_(gates_of_state).sigmoid_()
            state.copy_(cell_of_state)
            n.addcmul_(r, state).sigmoid_()
            torch.add(minus_one, n, alpha=2.0, out=tanh)
            torch.sub(before_now, tanh, out=h_now).mul_(z).add_(tanh)
        before = h[:-1]
        ctx.observed = gates is not None
        ctx.save_for_backward(
            series, input_weight, state_weight, active, entering, proposed, before
        )
        ctx.mark_non_differentiable(before)
        return h[1:], before

    @staticmethod
    def backward(
        ctx: Any, back: torch.Tensor, _: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradient of each argument of `forward`."""
        _check_order()
        series, input_weight, state_weight, active, entering, proposed, before = ctx.saved_tensors
        steps, records, width = proposed.shape
        r, z, n = torch.split(active, width, dim=2)
        through = torch.ops.aten.sigmoid_backward
        # What dh is multiplied by, for: n from the inputs, r, z, n from the state.
        found = active.new_empty(steps, records, 4 * width)
        of_n, of_r, of_z, of_state = found.split(width, dim=2)
        torch.mul(through(1.0 - z, n), 4.0, out=of_n)  # (1 - z) (1 - n^2): `n` is of twice as much
        torch.mul(of_n, r, out=of_state)
        torch.mul(through(entering * 0.5, r), of_n, out=of_r)
        of_z.copy_(through(before - proposed, z))
        keep = z.contiguous()
        by_gate = found.view(steps, records, 4, width)
        tensors = (found[:, :, width:], by_gate, keep, back)
        each = list(zip(*(tensor.unbind(0) for tensor in tensors), strict=True))
        carried: torch.Tensor | None = None
        for of_hh, gates, keep_now, here in reversed(each):
            dh = here if carried is None else here + carried
            gates.mul_(dh.unsqueeze(1))
            carried = torch.addmm(dh * keep_now, of_hh, state_weight)
        needed, order = ctx.needs_input_grad, (found[:, :, width : 3 * width], found[:, :, :width])
        of_ih = torch.cat(order, dim=2) if any(needed[:5]) else found
        gradients = _gradients(needed, series, before, of_ih, found[:, :, width:], input_weight)
        return (*gradients, found if ctx.observed else None)


def _from_inputs(
    series: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, of: int
) -> torch.Tensor:
    """What the inputs of all steps give the gates, [steps, records, of * hidden]."""
    rows = torch.addmm(_doubled(bias, of=of), series.flatten(0, 1), _doubled(weight, of=of).t())
    return rows.view(*series.shape[:2], len(weight))


def _check_order() -> None:
    """Returns where nobody wants a gradient of the gradient, which would come out as zero.

    Raises:
        RuntimeError: otherwise.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "LSTM or GRU: expected a first gradient, found create_graph=True; set "
            "`as_opacus(model)` for gradients of gradients"
        )


def _doubled(parameter: torch.Tensor, *, of: int) -> torch.Tensor:
    """`parameter` [of * hidden, ...] with twice the numbers of the third gate, the cell's input."""
    doubled = parameter.clone(memory_format=torch.contiguous_format)
    doubled.chunk(of)[2].mul_(2.0)
    return doubled


def _gradients(
    needed: tuple[bool, ...],
    series: torch.Tensor,
    before: torch.Tensor,
    of_ih: torch.Tensor,
    of_hh: torch.Tensor,
    input_weight: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of series, weights and biases, from those of both linear layers' outputs."""
    ih, hh = of_ih.flatten(0, 1), of_hh.flatten(0, 1)
    return (
        of_ih @ input_weight if needed[0] else None,
        ih.t() @ series.flatten(0, 1) if needed[1] else None,
        hh.t() @ before.flatten(0, 1) if needed[2] else None,
        ih.sum(dim=0) if needed[3] else None,
        hh.sum(dim=0) if needed[4] else None,
    )


class Lstm(_WholeSeries, DPLSTM):  # type: ignore[misc]  # Opacus has no annotations
    """Opacus' DPLSTM, with all steps of a cell at once; tests/unit/common/test_whole_series.py."""

    opacus = DPLSTM
    _run = staticmethod(_LstmSteps.apply)

    def forward(self, input: Any, state_init: Any = None) -> Any:
        """(states of the last layer, (last h, last c)), as `torch.nn.LSTM`."""
        if not self._whole(input, state_init):
            return super().forward(input, state_init)
        states, last = self._layers(input)
        h, c = (torch.stack(found) for found in zip(*last, strict=True))
        return states, (h, c)


class Gru(_WholeSeries, DPGRU):  # type: ignore[misc]  # as above
    """Opacus' DPGRU, with all steps of a cell at once; tests/unit/common/test_whole_series.py."""

    opacus = DPGRU
    _run = staticmethod(_GruSteps.apply)

    def forward(self, input: Any, state_init: Any = None) -> Any:
        """(states of the last layer, last h), as `torch.nn.GRU`."""
        if not self._whole(input, state_init):
            return super().forward(input, state_init)
        states, last = self._layers(input)
        return states, torch.stack([h for (h,) in last])
