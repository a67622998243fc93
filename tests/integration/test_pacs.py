"""A real Orthanc: objects are stored, found, fetched three ways, indexed; errors quote nothing."""

from pathlib import Path

import pytest
from pydicom import dcmread

from fedward_client.data.dicom.index import ImageIndex
from fedward_client.data.dicom.scan import index_folder
from fedward_client.pacs.dimse import DimsePacs, Peer
from fedward_client.pacs.web import WebPacs
from fedward_client.predict.answer import answer
from fedward_common.errors import ConfigError, DataError
from tests.support.dicom_objects import complete, ct_slice, reread, written
from tests.support.image_studies import classes_study, masks_study
from tests.support.orthanc import SITE_AE, Orthanc, orthanc  # noqa: F401
from tests.support.packages import make_package

pytestmark = pytest.mark.federation
STUDIES = {"1.2.3.901": 4, "1.2.3.902": 2}


@pytest.fixture(scope="module")
def filled(orthanc: Orthanc) -> Orthanc:  # noqa: F811
    """The PACS with two studies of one patient each, stored by STOW-RS."""
    objects = [
        reread(
            written(
                ct_slice(
                    patient=f"P-{uid[-1]}",
                    study=uid,
                    series=f"{uid}.1",
                    sop=f"{uid}.1.{number + 1}",
                    z=2.0 * number,
                    number=number + 1,
                )
            )
        )
        for uid, count in STUDIES.items()
        for number in range(count)
    ]
    WebPacs(orthanc.url).store(objects)
    return orthanc


def pulled_uids(folder: Path) -> set[str]:
    return {str(dcmread(path).SOPInstanceUID) for path in folder.iterdir()}


EXPECTED = {f"{uid}.1.{n + 1}" for uid, count in STUDIES.items() for n in range(count)}


def test_dicomweb_finds_and_fetches_what_was_stored_and_the_index_takes_it(
    filled: Orthanc, tmp_path: Path
) -> None:
    pacs = WebPacs(filled.url)

    found = list(pacs.find({"ModalitiesInStudy": "CT"}))
    one = list(pacs.find({"PatientID": "P-2"}))
    done = pacs.pull([study.study_uid for study in found], into=tmp_path / "objects")

    assert {study.study_uid for study in found} == STUDIES.keys()
    assert [study.study_uid for study in one] == ["1.2.3.902"]
    assert (done.studies, done.objects) == (2, 6)
    assert pulled_uids(tmp_path / "objects") == EXPECTED
    with ImageIndex(tmp_path / "index.sqlite") as index:
        report = index_folder(tmp_path / "objects", index)
    assert (report.images, report.patients, report.quarantined) == (6, 2, {})
    assert (tmp_path / "objects").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("by", ["get", "move"])
def test_dimse_finds_and_fetches_the_same_objects(by: str, filled: Orthanc, tmp_path: Path) -> None:
    peer = Peer(host="127.0.0.1", port=filled.dimse_port, called="ORTHANC", calling=SITE_AE)
    pacs = DimsePacs(peer, listen_port=filled.back_port)

    found = [study.study_uid for study in pacs.find({"StudyDate": ""})]
    done = pacs.pull(found, into=tmp_path, by=by)  # type: ignore[arg-type]

    assert set(found) == STUDIES.keys()
    assert (done.objects, done.failed) == (6, 0)
    assert pulled_uids(tmp_path) == EXPECTED


def test_an_error_quotes_nothing_and_an_address_without_tls_is_refused(
    filled: Orthanc, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as web:
        WebPacs(filled.url + "/Muster^Erika").pull(["1.2.3.901"], into=tmp_path)
    nobody = Peer(host="127.0.0.1", port=filled.back_port, called="NOBODY", calling=SITE_AE)
    with pytest.raises(DataError, match="association"):
        list(DimsePacs(nobody).find({}))
    with pytest.raises(ConfigError, match="without TLS"):
        WebPacs("http://pacs.example/dicom-web")

    assert "Muster" not in str(web.value)


def test_from_the_pacs_through_a_model_and_back_into_the_pacs(
    filled: Orthanc, tmp_path: Path
) -> None:
    """A series is pulled, a model answers, its SEG, report and capture are found by a query."""
    pacs = WebPacs(filled.url)
    sources = [complete(z=2.0 * n, number=n + 1, study="1.2.3.903", size=20) for n in range(6)]
    pacs.store([reread(written(source)) for source in sources])
    pacs.pull(["1.2.3.903"], into=tmp_path / "series")
    first = next((tmp_path / "series").iterdir())

    seg = answer(
        make_package(tmp_path / "a", masks_study(), seed=1).opened(),
        tmp_path / "series",
        out=tmp_path / "seg",
    )
    classes = answer(
        make_package(tmp_path / "b", classes_study()).opened(), first, out=tmp_path / "classes"
    )
    pacs.store([*seg.objects, *classes.objects])

    (study,) = pacs.find({"StudyInstanceUID": "1.2.3.903"})
    assert {"CT", "SEG", "SR"} <= set(study.modalities)
    pacs.pull(["1.2.3.903"], into=tmp_path / "again")
    assert len(list((tmp_path / "again").iterdir())) == 6 + 3
