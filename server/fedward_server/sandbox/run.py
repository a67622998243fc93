"""`fedward-server sandbox`: from a study file and folders of patients to a signed model."""

import importlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from fedward_common.arrays import Array, tensors_from_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId, parse_digest, parse_site_id
from fedward_common.log.setup import configure_logging
from fedward_common.study.files import SiteKeys, parse_study
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import Pictures
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import is_statistics
from fedward_common.trust.certificates import parse_peer_certificate
from fedward_common.trust.private_files import write_atomically
from fedward_server.adapters.flower_control import build_bundle
from fedward_server.adapters.model_package import Origin, write_package
from fedward_server.adapters.registry import open_registry
from fedward_server.adapters.start_weights import keep_start_weights
from fedward_server.bundle import bundle_folder, studies_folder
from fedward_server.ports import SiteRecord
from fedward_server.runs import follow, require_finished, run_folder, start_run
from fedward_server.sandbox.board import Header
from fedward_server.sandbox.clinical import EVENTS_TABLE
from fedward_server.sandbox.datasets import TABLE, deal_breast_cancer, import_fed_heart
from fedward_server.sandbox.datasets_genotypes import deal_ancestry
from fedward_server.sandbox.datasets_images import IMAGES, IMAGES_TABLE, deal_pneumonia
from fedward_server.sandbox.datasets_masks import deal_hippocampus
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.folders import data_file, has_data
from fedward_server.sandbox.genotypes import GENOTYPES
from fedward_server.sandbox.layout import Layout, SiteFolder, make_layout, prepare_root
from fedward_server.sandbox.parent_copy import ParentCopy
from fedward_server.sandbox.progress import View, open_view
from fedward_server.sandbox.settings_files import write_coordinator, write_sites
from fedward_server.sandbox.victims import Strikes, Victim
from fedward_server.settings import load_coordinator_settings

if TYPE_CHECKING:
    from fedward_server.sandbox.result import Outcome

ALONE_DRAWS: Final = 10
LATE: Final = (
    "fedward_server.sandbox.result",
    "fedward_server.sandbox.result_tables",
    "fedward_server.sandbox.statistics",
    "fedward_server.report.page",
)
"""What is not needed before the end: it imports torch and plots, while the processes start."""
KNOWN_DATA: Final = {
    "fed_heart_disease": ("heart.toml", import_fed_heart),
    "pneumoniamnist": ("pneumonia.toml", deal_pneumonia),
    "kg_eur_chr20": ("ancestry.toml", deal_ancestry),
    "hippocampus_msd": ("hippocampus.toml", deal_hippocampus),
}
DEMO_STUDY: Final = "breast-cancer.toml"
STUDY: Final = "study.toml"
SITES: Final = "sites"
"""Of a cohort with a study of its own (`make-cohort`): a folder for each site."""
START_WEIGHTS: Final = "start-weights.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What to run: a study file, and where its sites' patients come from."""

    study: Path
    sites: Mapping[SiteId, Path]
    source: Path | None = None
    start_weights: Path | None = None

    @classmethod
    def parse(
        cls,
        *,
        study: Path | None,
        sites: Sequence[str],
        data: Path | None,
        start_weights: Path | None = None,
    ) -> "Inputs":
        """The inputs that the command line names.

        Raises:
            ConfigError: options that contradict each other, an unknown data set, a missing folder.
        """
        if data is not None and sites:
            raise ConfigError("expected either --data or --site, found both. Leave one out")
        if data is not None and (data / STUDY).is_file():
            return cls(
                study=study or data / STUDY,
                sites=_site_folders(data),
                start_weights=start_weights,
            )
        if data is not None:
            return cls(
                study=study or _known_study(data),
                sites={},
                source=data,
                start_weights=start_weights,
            )
        folders = dict(_named_folder(text) for text in sites)
        if len(folders) != len(sites):
            raise ConfigError("--site: expected every site once, found one twice")
        if folders and study is None:
            raise ConfigError("--site: expected a STUDY.toml with it, found none")
        return cls(
            study=study or studies_folder() / DEMO_STUDY, sites=folders, start_weights=start_weights
        )

    def data_files(self, folder: Path) -> dict[SiteId, Path]:
        """One patients.csv per site; a known data set is dealt out under `folder`."""
        if self.sites:
            return {site: data_file(path) for site, path in self.sites.items()}
        if self.source is not None:
            return KNOWN_DATA[self.source.resolve().name][1](self.source, folder)
        return deal_breast_cancer(folder)


def _site_folders(data: Path) -> dict[SiteId, Path]:
    """The sites of a cohort with a study of its own. Raises ConfigError."""
    below = data / SITES
    folders = sorted(path for path in below.iterdir() if path.is_dir()) if below.is_dir() else []
    if not folders or not all(has_data(path) for path in folders):
        raise ConfigError(f"--data {data}: expected a folder for each site below {SITES}")
    return {parse_site_id(path.name): path for path in folders}


def _known_study(data: Path) -> Path:
    known = KNOWN_DATA.get(data.resolve().name)
    if not data.is_dir() or known is None:
        raise ConfigError(
            f"--data {data}: expected the folder of a known data set ({', '.join(KNOWN_DATA)}), "
            "found another. Use STUDY.toml with --site NAME=FOLDER for your own data"
        )
    return studies_folder() / known[0]


def _named_folder(text: str) -> tuple[SiteId, Path]:
    name, sign, folder = text.partition("=")
    if not sign or not has_data(Path(folder)):
        raise ConfigError(
            f"--site {text}: expected NAME=FOLDER with {TABLE} (and {EVENTS_TABLE} beside it for "
            f"clinical events), {IMAGES}, {IMAGES_TABLE} with its files, {GENOTYPES} or a folder "
            "for each modality, found none"
        )
    return parse_site_id(name), Path(folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A federation that is ready to start, its signed study and the parent's own copy."""

    layout: Layout
    study: StudySpec
    signed: SignedStudy
    copy: ParentCopy
    start_weights: Path | None = None


def prepare(inputs: Inputs, *, out: Path) -> Prepared:
    """Folders, keys, certificates, the signed study and every settings file under `out`.

    Raises:
        ConfigError, DataError: the study or the data are wrong; `out` is as it was.
    """
    checked, copy = _check(inputs)
    prepare_root(out)
    layout = make_layout(out, inputs.data_files(out / "data"))
    study = parse_study(
        _study_text(inputs.study),
        source=str(inputs.study),
        keys={site.site: _keys(site) for site in layout.sites.values()},
        lead_key_sha256=layout.lead_sha256,
        resolve=lambda _, unknown: float(getattr(checked.dp, unknown)),
    )
    if not inputs.sites:  # dealt out anew, into files of this sandbox
        copy = ParentCopy.read(study, {s.site: s.data_file for s in layout.sites.values()})
    signed = SignedStudy.sign(study, layout.lead)
    write_coordinator(layout)
    write_sites(layout, study=study, bundle_sha256=build_bundle(bundle_folder()).sha256)
    write_atomically(out / "study.json", signed.canonical)
    weights = None
    if inputs.start_weights is not None:
        weights = out / START_WEIGHTS
        write_atomically(weights, inputs.start_weights.read_bytes())
    _register(layout)
    return Prepared(layout=layout, study=study, signed=signed, copy=copy, start_weights=weights)


def _check(inputs: Inputs) -> tuple[StudySpec, ParentCopy]:
    """The study with stand-in keys and the patients, after its file and all its data were read.

    Raises:
        ConfigError, DataError: something in them is wrong.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = inputs.data_files(Path(scratch))
        study = parse_study(
            _study_text(inputs.study),
            source=str(inputs.study),
            keys={
                site: SiteKeys(
                    key_sha256=sha256_hex(f"{site}/key".encode()),
                    node_key_sha256=sha256_hex(f"{site}/node".encode()),
                )
                for site in files
            },
            lead_key_sha256=sha256_hex(b"lead"),
        )
        idle = sorted(set(files) - {site.id for site in study.sites})
        if idle:
            raise ConfigError(
                f"{inputs.study}: sites: expected an entry for {', '.join(idle)}, found none"
            )
        copy = ParentCopy.read(study, files)
        # Into the scratch folder: checked as a coordinator would, and kept nowhere.
        keep_start_weights(Path(scratch), study, inputs.start_weights)
    return study, copy


def _study_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a study file (UTF-8 TOML), found none") from error


def _keys(site: SiteFolder) -> SiteKeys:
    return SiteKeys(key_sha256=site.key_sha256, node_key_sha256=site.node_key_sha256)


def _register(layout: Layout) -> None:
    """Enters every site in the coordinator's registry."""
    registry = open_registry(load_coordinator_settings(layout.settings_file).database)
    for site in layout.sites.values():
        public = json.loads((site.folder / "keys" / "public.json").read_bytes())
        certificate = parse_peer_certificate(public["certificate_pem"].encode())
        registry.add(
            SiteRecord(
                site_id=site.site,
                certificate_sha256=parse_digest(certificate.fingerprint_sha256),
                node_public_key=public["node_public_key"],
                signing_public_key=public["signing_public_key"],
            )
        )
    registry.close()


def run_sandbox(
    inputs: Inputs, *, out: Path, quiet: bool = False, kill: Sequence[str] = ()
) -> dict[str, Any]:
    """The result of the study, also written to `out`: result.json, report.html, model/.

    The processes named in `kill` are killed in the second round, to see that the study outlives it.

    Raises:
        ConfigError: `kill` names what is not there; nothing was started or written.
        FedwardError: the study or the data are wrong, a process did not start, the study failed;
            `out` then holds logs and no result.
    """
    configure_logging(process="sandbox")
    console = Console(stderr=quiet, quiet=quiet)
    started = time.monotonic()
    victims = _victims(inputs, kill)
    prepared = prepare(inputs, out=out)
    view = nullcontext() if quiet else open_view(Header.of(prepared.study), console=console)
    with Federation(prepared.layout) as federation, view as shown:
        if is_statistics(prepared.study):
            return _statistics(federation, prepared, view=shown, out=out, console=console)
        strikes = Strikes(federation=federation, waiting=victims, rounds=prepared.study.rounds)
        with ThreadPoolExecutor(max_workers=1) as pool:
            ends: list[Future[None]] = []
            outcome = run_study(
                federation,
                prepared,
                view=shown,
                strikes=strikes,
                # Nobody needs the processes any more, and they take time from what is left to do.
                ended=lambda: ends.append(pool.submit(federation.stop)),
            )
            seconds = time.monotonic() - started
            from fedward_server.sandbox.result import assemble_result  # noqa: PLC0415 - LATE

            result = assemble_result(prepared.study, prepared.copy, outcome, seconds=seconds)
            for end in ends:
                end.result()
    publish(result, prepared, outcome, out=out)
    if not quiet:
        from fedward_server.sandbox.result_tables import print_result  # noqa: PLC0415 - LATE

        print_result(result, console)
        for line in strikes.lines():
            console.print(line, markup=False, highlight=False)
        console.print(f"\nWritten to {out}: result.json, report.html, model/, audit logs")
    return result


def _statistics(
    federation: Federation, prepared: Prepared, *, view: View | None, out: Path, console: Console
) -> dict[str, Any]:
    """The statistics of a study that releases nothing else, also written to `out` and printed."""
    from fedward_server.report.statistics import statistics_text  # noqa: PLC0415 - LATE
    from fedward_server.sandbox.statistics import run_statistics  # noqa: PLC0415 - LATE

    found = run_statistics(
        federation,
        prepared.study,
        prepared.signed.canonical,
        tables=prepared.copy.tables,
        out=out,
        view=view,
    )
    console.print(statistics_text(found), markup=False, highlight=False, soft_wrap=True)
    return found


def _victims(inputs: Inputs, kill: Sequence[str]) -> list[Victim]:
    """The processes that `kill` names. Raises ConfigError."""
    sites = [site.id for site in _check(inputs)[0].sites] if kill else []
    return [Victim.parse(text, sites=sites) for text in kill]


def run_study(
    federation: Federation,
    prepared: Prepared,
    *,
    view: View | None,
    strikes: Strikes | None = None,
    ended: Callable[[], object] = lambda: None,
) -> "Outcome":
    """The outcome of the study on a federation that is started here.

    `ended` is called when the last round is over; what is asked of the sites after that they answer
    from their files.

    Raises:
        StartError: a process did not come up or ended.
        StudyFailed: the study ended without a model.
    """
    started = time.monotonic()

    def show(action: str, **fields: Any) -> None:
        if view is not None:
            view.feed(action, fields)

    late = _import_late()
    federation.start(on_state=lambda site, state: show(f"site.{state}", site=site))
    ready = time.monotonic()
    name, _ = start_run(
        federation.settings, prepared.signed.canonical, start_weights=prepared.start_weights
    )
    evaluated = ready

    def alive() -> None:
        federation.keep_up()
        if strikes is not None:
            strikes.look()

    with _rehearsing(federation, prepared) as alone:
        for event in follow(federation.settings, name, alive=alive):
            if strikes is not None:
                strikes.see(event)
            if event["fields"].get("kind") == "evaluate" and event["action"] == "round.opened":
                evaluated = time.monotonic()
            show(event["action"], **event["fields"])
        facts = require_finished(federation.settings, name)
        finished, sites = time.monotonic(), federation.sites
        show("phase", name="each site alone, budgets and journals")
        ended()
        own = _of_each_site(federation, sites, alone)
    late.join()
    from fedward_server.sandbox.result import read_outcome  # noqa: PLC0415 - LATE

    return read_outcome(
        run_folder(federation.settings, name),
        facts,
        **own,
        timings={
            "start": ready - started,
            "training": evaluated - ready,
            "evaluation": finished - evaluated,
        },
    )


def _import_late() -> threading.Thread:
    """The thread that imports what is LATE; started, and not waited for by the end of a process."""
    late = threading.Thread(target=lambda: [*map(importlib.import_module, LATE)], daemon=True)
    late.start()
    return late


def _of_each_site(
    federation: Federation,
    sites: Sequence[SiteId],
    alone: Mapping[SiteId, Future[list[dict[str, Array]]]],
) -> dict[str, Any]:
    """Budget, journal and the models without partners of each site, as `read_outcome` takes them.

    Raises:
        StartError: a site did not answer.
    """
    return {
        "budgets": _ask_all(federation, sites, "budget", "show"),
        "journals": _ask_all(federation, sites, "journal", "show"),
        "alone": {site: alone[site].result() for site in sites},
    }


def _is_costly(study: StudySpec) -> bool:
    """Whether one training takes so long that one draw of each site alone has to do."""
    slow = Pictures | NotesData | LabelledRows | Genotypes | MultimodalData
    return isinstance(study.data, slow) or bool(study.model.steps)


def _ask_all(
    federation: Federation, sites: Sequence[SiteId], *command: str
) -> dict[SiteId, dict[str, Any]]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        answers = pool.map(lambda site: federation.ask_site(site, *command), sites)
        return dict(zip(sites, answers, strict=True))


@contextmanager
def _rehearsing(
    federation: Federation, prepared: Prepared
) -> Iterator[Mapping[SiteId, Future[list[dict[str, Array]]]]]:
    """Each site's models from the study's plan without partners (`fedward-client rehearse`).

    Two at a time (one, where that is costly), with what time of the processor the federation
    leaves; what has not ended when the block is left is ended.
    """
    out = prepared.layout.root / "alone"
    costly = _is_costly(prepared.study)
    draws = 1 if costly else ALONE_DRAWS

    def of(site: SiteId) -> list[dict[str, Array]]:
        study = str(prepared.layout.root / "study.json")
        options = ["--out", str(out / site), "--draws", str(draws)]
        if prepared.start_weights is not None:
            options += ["--start-weights", str(prepared.start_weights)]
        report = federation.ask_site(site, "rehearse", study, *options, patient=True)
        return [tensors_from_bytes(Path(path).read_bytes()) for path in report["models"]]

    pool = ThreadPoolExecutor(max_workers=1 if costly else 2)
    try:
        yield {site: pool.submit(of, site) for site in federation.sites}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        federation.end_patient()
        pool.shutdown()
        # Models of single hospitals: looked at here and kept nowhere.
        shutil.rmtree(out, ignore_errors=True)


def publish(
    result: Mapping[str, Any], prepared: Prepared, outcome: "Outcome", *, out: Path
) -> None:
    """Writes report and model package and, last, result.json: where that stands, all stands."""
    from fedward_server.report.card import model_card  # noqa: PLC0415 - LATE
    from fedward_server.report.disclosure_file import write_disclosure  # noqa: PLC0415 - LATE
    from fedward_server.report.page import write_report  # noqa: PLC0415 - LATE

    write_package(
        out / "model",
        study=prepared.study,
        model=outcome.model,
        card=model_card(result),
        epsilon=result["epsilon"],
        key=prepared.layout.lead,
        origin=Origin(signed_study=prepared.signed.canonical),
    )
    write_report(result, out / "report.html")
    write_disclosure(prepared.study, result, out)
    write_atomically(out / "result.json", json.dumps(result, indent=1).encode() + b"\n")
