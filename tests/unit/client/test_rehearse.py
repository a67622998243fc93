"""A rehearsal runs the study's own plan on one site, leaves nothing and charges nothing."""

from pathlib import Path

import numpy as np
import pytest

from fedward_client.rehearse import rehearse, write_models
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.arrays import tensors_from_bytes
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import StudySpec
from tests.support.studies import SITES, make_spec


class OneTable:
    def checked_records(self, study: StudySpec, *, part: str) -> PatientRecords:
        return PatientRecords(
            features=np.eye(3, dtype=np.float32),
            labels=np.array([1, 0, 1], dtype=np.float32),
            patient=np.arange(3, dtype=np.int64),
        )


def test_each_draw_has_noise_of_its_own() -> None:
    study = make_spec()

    models = rehearse(study, SiteId(SITES[0]), OneTable(), flags=PerformanceFlags(), draws=3)

    assert len(models) == 3
    for name, tensor in models[0].items():
        assert (models[1][name] != tensor).any()


def test_a_site_outside_the_study_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a study with the site"):
        rehearse(make_spec(), SiteId("nowhere"), OneTable(), flags=PerformanceFlags(), draws=1)


def test_models_are_written_for_the_site_alone(tmp_path: Path) -> None:
    model = {"w": np.ones(2, dtype=np.float32)}

    (path,) = write_models([model], tmp_path / "out")

    assert path.stat().st_mode & 0o077 == 0
    np.testing.assert_array_equal(tensors_from_bytes(path.read_bytes())["w"], model["w"])
