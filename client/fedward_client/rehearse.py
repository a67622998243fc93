"""A study's plan on this site's own patients only: what the site would reach alone.

Nothing leaves the site, so nothing is charged; the models stay in the folder that was named.
Whoever releases one of them must charge it first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fedward_client.data.tabular import CheckedSource
from fedward_client.harmonised import SiteConstants
from fedward_client.statistics import RowSource
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Array, Tensors, tensors_to_bytes
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.averages import released_models
from fedward_common.models.generator_descent import generator_of
from fedward_common.models.start import start_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_private


class RehearsalSource(CheckedSource, RowSource, Protocol):
    """Reads strictly, and gives the rows that a harmonised study needs (port)."""


def rehearse(
    study: StudySpec,
    site: SiteId,
    source: RehearsalSource,
    *,
    flags: PerformanceFlags,
    draws: int,
    start_weights: bytes | None = None,
) -> list[dict[str, Array]]:
    """`draws` models, each trained with the study's noise, rounds and steps on this site alone.

    `start_weights`: the file that the study begins with, where it names one.

    Raises:
        ConfigError: the study does not include this site, or begins with another file.
        DataError: the site's data do not fit the study.
    """
    if study.site(site) is None:
        raise ConfigError(f"rehearse: expected a study with the site {site}, found one without it")
    start = start_tensors(study.model, task_of(study).inputs, file=start_weights)
    records = source.checked_records(study, part="train")
    return [
        _one(
            LocalTrainer(study, site, sampling=Csprng(), noise=Csprng(), flags=flags),
            study,
            SiteConstants.of(study, source, state=b"", noise=Csprng).applied(records),
            start=start,
        )
        for _ in range(draws)
    ]


def _one(
    trainer: LocalTrainer, study: StudySpec, records: PatientRecords, *, start: Tensors
) -> dict[str, Array]:
    model = dict(start)
    released, generator = released_models(study), generator_of(study)
    for number in range(1, study.rounds + 1):
        model = trainer.train(model, records, round_number=number).tensors
        if generator is not None:
            model = generator.after_round(model)
        released.add(model)
    return released.mean()


def write_models(models: Sequence[dict[str, Array]], folder: Path) -> list[Path]:
    """The files (0600) of the models in `folder`, in their order."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = [folder / f"draw-{number:03d}.safetensors" for number in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        write_private(path, tensors_to_bytes(model))
    return paths
