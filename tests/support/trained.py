"""One round of training through the product: task, source, trainer and engine as at a site."""

from collections.abc import Mapping

from fedward_client.data.site import SiteSource
from fedward_client.training.patient_dp.back_end import BackEndName
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Array
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task


def trained(spec: StudySpec, source: SiteSource, backend: BackEndName) -> Mapping[str, Array]:
    """The weights after one round at the study's first site; every tensor has changed."""
    check_task(spec)
    start = initial_tensors(spec.model, input_size(spec.data))
    trainer = LocalTrainer(
        spec,
        SiteId(spec.sites[0].id),
        sampling=Csprng(),
        noise=Csprng(),
        flags=PerformanceFlags(backend=backend),
    )

    update = trainer.train(start, source.records(spec, part="train"))

    assert update.executed.steps == spec.local_steps
    assert all((update.tensors[name] != start[name]).any() for name in start)
    return update.tensors
