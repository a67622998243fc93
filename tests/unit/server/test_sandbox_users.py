"""A sandbox gives each site users of its own where it can, and changes nothing where it cannot."""

import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_common.ids import SiteId
from fedward_common.users import Account, acting_as
from fedward_server.sandbox.layout import Layout, make_layout, prepare_root
from fedward_server.sandbox.users import separate_users
from tests.support.reachable import let_everybody_read_python, passable_folder

SITES = (SiteId("north"), SiteId("south"))
SETTINGS = 'site = "x"\n\n[policy]\nmin_noise = 1.0\n'
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def layout() -> Iterator[Layout]:
    with passable_folder() as folder:
        out = folder / "out"
        prepare_root(out)
        files = {site: out / "data" / site / "patients.csv" for site in SITES}
        for file in files.values():
            file.parent.mkdir(parents=True)
            file.write_text("patient_id\n")
        made = make_layout(out, files)
        for site in made.sites.values():
            site.settings_file.write_text(SETTINGS)
        yield made
        made.run.rmdir()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@as_root
def test_each_site_gets_four_users_and_a_group_that_nobody_else_has(layout: Layout) -> None:
    if not let_everybody_read_python():
        pytest.skip("needs a Python that other users may read")

    assert separate_users(layout)

    numbers = [
        value
        for site in layout.sites.values()
        for value in tomllib.loads(site.settings_file.read_text())["guard"].values()
    ]
    assert len(set(numbers)) == len(numbers) == 5 * len(SITES)
    assert all(number.startswith("#") for number in numbers)


@as_root
def test_the_patients_are_their_sites_workers_to_read_and_nobodys_to_write(layout: Layout) -> None:
    if not let_everybody_read_python():
        pytest.skip("needs a Python that other users may read")

    separate_users(layout)

    for site in layout.sites.values():
        worker = tomllib.loads(site.settings_file.read_text())["guard"]["worker_user"]
        assert site.data_file.stat().st_uid == 0
        assert f"#{site.data_file.stat().st_gid}" == worker
        assert mode(site.data_file) == 0o440
    assert mode(layout.coordinator) == 0o700


@as_root
def test_a_guard_table_that_is_there_already_is_kept(layout: Layout) -> None:
    if not let_everybody_read_python():
        pytest.skip("needs a Python that other users may read")
    first = next(iter(layout.sites.values()))
    first.settings_file.write_text(f"{SETTINGS}\n[guard]\nreply_hours = 2.0\n")

    separate_users(layout)

    guard = tomllib.loads(first.settings_file.read_text())["guard"]
    assert guard["reply_hours"] == 2.0
    assert "worker_user" in guard


@as_root
def test_without_the_rights_nothing_changes(layout: Layout) -> None:
    before = mode(layout.root), [site.data_file.stat() for site in layout.sites.values()]

    with acting_as(Account(name="somebody", uid=54321, gid=54321)):
        done = separate_users(layout)

    assert not done
    assert (mode(layout.root), [s.data_file.stat() for s in layout.sites.values()]) == before
    for site in layout.sites.values():
        assert site.settings_file.read_text() == SETTINGS
