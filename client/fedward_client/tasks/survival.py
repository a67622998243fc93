"""The time until an event: likelihoods with one term per patient, so that clipping binds them.

Sources: Gensheimer and Narasimhan 2019 (discrete hazards); Holford 1980, Laird and Olivier 1981
(proportional hazards as a hazard that is constant within intervals; the network for the risk score
is DeepSurv's, Katzman et al. 2018).
"""

import numpy as np
import torch
from torch.nn import functional

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords, Labels
from fedward_common.errors import ModelRefused
from fedward_common.study.tasks import Survival

_YEAR = 365.25
_SOONEST = 1e-3
"""Days. Labels nearer to 0 only occur in checks."""


class SurvivalTask:
    """Outputs [records, intervals]; labels are days, negative without an event so far.

    Who is followed beyond the last cut counts as followed to there.
    """

    def __init__(self, spec: Survival, *, inputs: int) -> None:
        self.inputs = inputs
        self._spec = spec
        self._ends = torch.tensor(spec.cuts, dtype=torch.float32)
        self._starts = torch.cat([torch.zeros(1), self._ends[:-1]])

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The negative log-likelihood of each record, shape [records].

        Raises:
            ModelRefused: the output is not one number for each interval of each record.
        """
        expected = (*labels.shape, len(self._ends))
        if outputs.shape != expected:
            raise ModelRefused(
                f"output layer: expected one number for each interval, shape {list(expected)}, "
                f"found {list(outputs.shape)}"
            )
        ends, starts = self._ends.to(outputs.device), self._starts.to(outputs.device)
        days = labels.abs().clamp(min=_SOONEST).unsqueeze(-1)
        event = (labels > 0).unsqueeze(-1) & (days > starts) & (days <= ends)
        if self._spec.likelihood == "discrete-hazard":
            # An interval is survived when its end was seen; censored inside, it says nothing.
            survived = days >= ends
            survived = survived & ~event
            terms = survived * functional.softplus(outputs) + event * functional.softplus(-outputs)
        else:
            at_risk = (torch.minimum(days, ends) - starts).clamp(min=0.0) / _YEAR
            terms = at_risk * outputs.exp() - event * outputs
        return terms.sum(dim=-1)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The predicted chance of the event by the horizon, in [0, 1]."""
        return event_chance(outputs, self._spec)

    def classes(self, labels: Labels) -> Labels:
        """1: the event by the horizon; 0: followed beyond it without; NaN: lost before."""
        horizon = self._spec.horizon_days
        early = np.where(labels > 0, np.float32(1.0), np.float32(np.nan))
        return np.where(np.abs(labels) >= horizon, np.float32(labels == horizon), early).astype(
            np.float32
        )

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records with events and censored follow-up in every interval."""
        last = self._spec.cuts[-1]

        def labels(count: int) -> torch.Tensor:
            days = torch.linspace(0.1, 1.0, count) * last
            return torch.where(torch.arange(count) % 2 == 0, days, -days)

        return made_up(self.inputs, device=device, labels=labels)


def event_chance(outputs: torch.Tensor, spec: Survival) -> torch.Tensor:
    """The chance of the event by the horizon from `outputs` [records, intervals], in [0, 1]."""
    cuts = [cut for cut in spec.cuts if cut <= spec.horizon_days]
    until = outputs[:, : len(cuts)]
    if spec.likelihood == "discrete-hazard":
        log_survival = -functional.softplus(until).sum(dim=-1)
    else:
        lengths = torch.diff(torch.tensor([0.0, *cuts])).to(outputs) / _YEAR
        log_survival = -(lengths * until.exp()).sum(dim=-1)
    return -torch.expm1(log_survival)
