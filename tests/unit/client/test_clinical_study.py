"""A clinical study from its file to a trained model, over a hospital's own FHIR export."""

from pathlib import Path

import numpy as np
import pytest
import tomli_w

from fedward_client.data.site import SiteSource
from fedward_client.settings import load_site_settings
from fedward_client.studies import _fields
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_client.training.weights import record_scores
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.files import parse_study
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from tests.support import synthea
from tests.support.clinical import clinical, measured
from tests.support.guard_site import make_site
from tests.support.studies import LEAD, SITES, make_document, site_keys


def study_file(**data: object) -> str:
    """study.toml as its lead writes it: no keys, no noise."""
    document = make_document(data=clinical(**data), model={"name": "mlp", "hidden": [4]})
    del document["lead_key_sha256"], document["dp"]["noise_multiplier"], document["dp"]["steps"]
    document["sites"] = [{"id": site["id"], "patients": 50} for site in document["sites"]]
    return tomli_w.dumps(document)


def parsed(text: str) -> StudySpec:
    return parse_study(
        text,
        source="study.toml",
        keys=site_keys(),
        lead_key_sha256=LEAD,
        resolve=lambda _study, _unknown: 3.0,
    )


@pytest.mark.skipif(not synthea.DATA.is_dir(), reason="needs shared/data")
def test_from_study_toml_and_an_export_to_a_trained_model(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", top={"data": [{"kind": "fhir", "path": "export"}]})
    synthea.write_bulk(synthea.bundles("norwood_hospital"), site.folder / "export")
    source = SiteSource(load_site_settings(site.folder / "site.toml"))
    study = parsed(study_file())
    start = initial_tensors(study.model, input_size(study.data))

    records = source.records(study, part="train")
    trainer = LocalTrainer(
        study, SiteId(SITES[0]), sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags()
    )
    update = trainer.train(start, records)
    scores = record_scores(study, update.tensors, source.records(study, part="test").features)

    assert records.patients >= 3
    assert any((update.tensors[name] != start[name]).any() for name in start)
    assert np.isfinite(scores).all()


def test_a_study_with_a_unit_nobody_can_convert_is_refused_when_it_is_signed() -> None:
    text = study_file(features=[measured("one", "LOINC:1-1", unit="furlong per fortnight")])

    with pytest.raises(ConfigError, match="UCUM"):
        parsed(text)


def test_people_who_decide_see_every_code_and_what_it_is_for() -> None:
    fields = {field["name"]: field["use"] for field in _fields(parsed(study_file()))}

    assert fields["LOINC:2093-3"] == "the index event"
    assert "exclusion" in fields["SNOMED:22298006"]
    assert "outcome" in fields["SNOMED:15777000"]
    assert "prediabetes" in fields["SNOMED:15777000"]
