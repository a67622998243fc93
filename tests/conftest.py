"""What every test may use: one federation for the whole session, short studies, honest skips."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling, Scheduling

from tests.support.live import LiveFederation, start_live
from tests.support.reachable import let_everybody_read_python, passable_folder
from tests.support.studies import STUDY_FILES

ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips.txt"
USE_LIVE = frozenset(
    {
        "tests/e2e/test_demo.py",
        "tests/e2e/test_site_decides.py",
        "tests/e2e/test_study_commands.py",
        "tests/security/test_isolation.py",
    }
)
"""Files whose tests take the fixture `live`. pytest-xdist 3.8 does not see its own group marks
under pytest 9.2, so the files are named; one that is missing starts a second federation."""

HEART_DATA = Path(__file__).parents[2] / "shared" / "data" / "fed_heart_disease"


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """A program that a test runs in this process leaves neither its umask nor its log behind."""
    mask = os.umask(0o022)
    os.umask(mask)
    configured = structlog.is_configured()
    yield
    os.umask(mask)
    if structlog.is_configured() and not configured:
        structlog.reset_defaults()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a skip is a failure unless allowed_skips.txt gives its reason (rules 27)."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("FEDWARD_CI") == "1":
        lines = ALLOWED_SKIPS.read_text().splitlines()
        allowed = {line.partition(" ")[0] for line in lines if line and not line.startswith("#")}
        if item.nodeid.partition("[")[0] not in allowed:
            report.outcome = "failed"
            report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes goes first: it takes longest, and one process of `-n` is never idle."""
    items.sort(key=lambda item: item.get_closest_marker("federation") is None)


class OneLiveFederation(LoadFileScheduling):
    """Tests of a file stay in one process, and all that use the session's federation in one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "live" if file in USE_LIVE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return OneLiveFederation(config, log)


@pytest.fixture(scope="session")
def live() -> Iterator[LiveFederation]:
    """The breast-cancer study on four sites: it has run once, and its processes are still up.

    Where root runs the tests each site's processes are users of their own.
    """
    let_everybody_read_python()
    with (
        passable_folder() as folder,
        start_live(
            STUDY_FILES / "breast-cancer.toml",
            folder,
            further=FURTHER_STUDIES,
            opacus_site="city",
        ) as running,
    ):
        yield running


SHORT = {"rounds = 8": "rounds = 2", "average_last = 2": "average_last = 1"}
FURTHER_STUDIES = {
    "mlp with fedprox and a given noise": {
        **SHORT,
        'name = "logistic-regression"': 'name = "mlp"\nhidden = [8]\ninitial_seed = 7',
        'name = "fedavg"': 'name = "fedprox"\nmu = 0.1',
        "epsilon = 2.0": "noise_multiplier = 6.0",
    },
    "fedadam": {
        **SHORT,
        'name = "fedavg"': 'name = "fedadam"\nlearning_rate = 0.5',
        'epsilon_is = "admission"': 'epsilon_is = "pld"',
    },
    "steps of a phase": {
        "rounds = 8": "rounds = 4",
        "local_steps = 5": "local_steps = 1",
        "average_last = 2": "average_last = 1",
    },
    "every utility lever": {
        "rounds = 8": "rounds = 2",
        'name = "logistic-regression"': 'name = "mlp"\nhidden = [8]\n'
        'lora = { rank = 2, layers = ["hidden.0"] }',
        "average_last = 2": "ema = 0.5",
        "momentum = 0.5": "momentum = 0.0",
        "learning_rate = 1.0": 'learning_rate = 0.05\noptimizer = "adam"\nfrozen = ["hidden.1."]\n'
        "jitter = { copies = 3, scale = 0.05 }",
        "clip_norm =": 'clipping = "auto-s"\nclip_norm =',
    },
}
"""What study.toml can ask for besides the demo; every site of the session's federation approves."""


@pytest.fixture
def short_study(tmp_path: Path) -> Path:
    """The breast-cancer study with one round of two steps."""
    return write_short_study(tmp_path / "short.toml")


def write_short_study(path: Path, *, rounds: int = 1, deadline_seconds: int = 60) -> Path:
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    for old, new in (
        ("rounds = 8", f"rounds = {rounds}"),
        ("local_steps = 5", "local_steps = 2"),
        ("average_last = 2", "average_last = 1"),
        ("deadline_seconds = 60", f"deadline_seconds = {deadline_seconds}"),
    ):
        if old not in text:
            raise AssertionError(f"the study file has no {old!r}")
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def heart_data() -> Path:
    """The four UCI files; skipped where they are not at hand."""
    if not HEART_DATA.is_dir():
        pytest.skip("needs the heart-disease data set beside the checkout")
    return HEART_DATA
