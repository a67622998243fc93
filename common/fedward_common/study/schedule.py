"""Learning rates over the steps of a study: functions of the step's number and of nothing else.

They work on noisy gradients by public numbers alone, so no schedule has an effect on privacy. A
round that is abandoned takes the numbers of its steps with it.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from fedward_common.study.registry import Strict


class Schedule(Strict):
    """What part of `learning_rate` each step has.

    Over the first `warm_up` steps it rises in equal parts to the whole. After that it is `constant`
    or falls: by half a `cosine` to the part `last` at the study's last step (Loshchilov and Hutter
    2017), or in each `step` of `every` steps by `factor`. A step is one of a site's local steps;
    with distributed noise it is a round.
    """

    kind: Literal["constant", "cosine", "step"] = "constant"
    warm_up: int = Field(default=0, ge=0, le=1_000_000)
    last: float | None = Field(default=None, ge=0, le=1, description="cosine; none: 0")
    every: int | None = Field(default=None, ge=1, le=1_000_000, description="step")
    factor: float | None = Field(default=None, gt=0, lt=1, description="step")

    def part(self, step: int, *, steps: int) -> float:
        """The part of step 0..`steps` - 1, in (0, 1], or 0 where a cosine ends there.

        Steps after the last have the last one's part.
        """
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        if self.kind == "step" and self.every is not None and self.factor is not None:
            return float(self.factor ** ((step - self.warm_up) // self.every))
        if self.kind == "cosine":
            least, length = self.last or 0.0, steps - 1 - self.warm_up
            way = min((step - self.warm_up) / length, 1.0) if length > 0 else 0.0
            return least + (1.0 - least) * (1.0 + math.cos(math.pi * way)) / 2.0
        return 1.0

    @model_validator(mode="after")
    def _fitting(self) -> "Schedule":
        if (self.kind == "step") != (self.every is not None and self.factor is not None) or (
            self.kind != "step" and (self.every is not None or self.factor is not None)
        ):
            raise ValueError("schedule: expected every and factor with kind step, and only so")
        if self.last is not None and self.kind != "cosine":
            raise ValueError("schedule: expected last with kind cosine alone")
        if self.kind == "constant" and not self.warm_up:
            raise ValueError("schedule: expected warm_up with kind constant, found nothing to do")
        return self
