"""Proportional hazards with a baseline in pieces: Cox's and DeepSurv's models."""

import torch
from torch import nn

from fedward_common.models.multimodal import Build, multimodal
from fedward_common.models.tabular import build_tabular, empty_linear
from fedward_common.study.spec import ModelSpec


class ProportionalHazards(nn.Module):
    """The logarithm of the hazard in each interval: a risk score plus the interval's baseline.

    The baselines start at 5 % a year, where the events of most follow-up studies leave them.
    """

    def __init__(self, risk: nn.Module, *, intervals: int) -> None:
        super().__init__()
        self.risk = risk
        # A layer and no bare parameter: batched back ends have rules for layers only.
        self.baseline = empty_linear(1, intervals, bias=False)
        nn.init.constant_(self.baseline.weight, -3.0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Log hazards per year [records, intervals] of `features` [records, inputs]."""
        score: torch.Tensor = self.risk(features)
        baseline: torch.Tensor = self.baseline(torch.ones_like(score).unsqueeze(-1))
        return score.unsqueeze(-1) + baseline


def proportional_hazards(spec: ModelSpec, inputs: int, *, build: Build) -> nn.Module:
    """The model `proportional-hazards`: linear without `hidden` (Cox), else DeepSurv's network.

    With `fusion` the risk score is that of the model `multimodal`, whose head has `hidden` widths.

    Raises:
        ConfigError: as `multimodal`, where there is a fusion.
    """
    if spec.fusion is None:
        risk = build_tabular(spec, inputs, outputs=1)
    else:
        risk = multimodal(spec.model_copy(update={"outputs": 1}), inputs, build=build)
    return ProportionalHazards(risk, intervals=spec.outputs)
