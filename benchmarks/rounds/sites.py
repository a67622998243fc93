"""The site of the benchmark: `fedward-client run` as it is, with a worker that does not train.

Guard, ledger, policy, receipts, journal, gateway and SuperNode are the installed ones. Only the
worker's trainer is another: it returns the weights that came, as if the study's plan had run.
"""

import os
import sys
from pathlib import Path
from typing import Any

import fedward_client.train_round as train_round
from fedward_client.training.trainer import ExecutedPlan, TrainedUpdate
from fedward_common.study.spec import DpSgd


class Echo:
    """A `LocalTrainer` that gives back what it gets."""

    def __init__(self, study: Any, site: Any, **_: Any) -> None:
        del site
        self._study = study

    def train(
        self,
        weights: Any,
        records: Any,
        *,
        round_number: int | None = None,
        correction: Any = None,
    ) -> TrainedUpdate:
        """The weights, with the plan that the study asks for."""
        del records, round_number, correction
        plan = self._study.dp
        if not isinstance(plan, DpSgd):
            raise TypeError("rounds: expected a dp-sgd study")
        ran = ExecutedPlan(
            steps=self._study.local_steps,
            noise_multiplier=plan.noise_multiplier,
            clip_norm=plan.clip_norm,
            sampling_probability=plan.sampling_probability,
            denominator=1.0,
        )
        return TrainedUpdate(tensors=weights, executed=ran)


def run_worker(config: Path) -> None:
    """`fedward-client worker` with the echo."""
    from fedward_client.commands.processes import worker  # noqa: PLC0415

    train_round.LocalTrainer = Echo  # type: ignore[misc,assignment]
    worker(config)


def run_site(config: Path) -> None:
    """`fedward-client run` whose worker is ours."""
    import fedward_client.site_run as site_run  # noqa: PLC0415
    from fedward_client.settings import load_site_settings  # noqa: PLC0415
    from fedward_common.log.setup import configure_logging  # noqa: PLC0415

    before = site_run._Site._program

    def program(self: Any, command: str) -> tuple[str, ...]:
        if command != "worker":
            return before(self, command)
        return (sys.executable, "-m", __spec__.name, "worker", str(config))

    site_run._Site._program = program  # type: ignore[method-assign]
    configure_logging(process="site")
    site_run.run_site(load_site_settings(config))


if __name__ == "__main__":
    os.umask(0o077)
    {"worker": run_worker, "site": run_site}[sys.argv[1]](Path(sys.argv[2]))
