"""Whatever bytes come: what a site reads of people and files is refused in words, never a crash."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client.approvals import KINDS, Standing, read_statement
from fedward_client.exclusions import parse_exclusions
from fedward_client.settings import Approver, SiteSettings, load_site_settings
from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError, DataError, FedwardError
from fedward_common.trust.statements import Statement
from tests.support.guard_site import STEWARD, STEWARD_NAME, a_study, about, site_values, statement

NOW = datetime(2026, 11, 20, tzinfo=UTC)
GOOD = about(a_study(), now=NOW)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = st.sampled_from(sorted(GOOD.model_dump(mode="json")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(data=st.binary(max_size=4096))
def test_bytes_that_are_no_statement_are_refused(data: bytes) -> None:
    with pytest.raises(FedwardError):
        read_statement(data)


@given(kind=st.sampled_from([*KINDS, "other"]), field=FIELDS, value=VALUES)
def test_a_statement_with_any_field_replaced_is_refused(
    kind: str, field: str, value: object
) -> None:
    """Re-encoded in its canonical form where there is one, so that only the meaning is wrong."""
    changed = GOOD.model_dump(mode="json") | {"kind": kind, field: value}
    try:
        data = canonical_json(changed)
    except FedwardError:
        data = json.dumps(changed).encode(errors="replace")
    if data == GOOD.canonical:
        return

    with pytest.raises(FedwardError):
        read_statement(data)


@given(orders=st.lists(st.sampled_from(["pause", "resume"]), max_size=12))
def test_in_every_order_the_last_word_holds(orders: list[str]) -> None:
    standing = Standing(
        site="north", approvers=[Approver(name=STEWARD_NAME, public_key=STEWARD.public_hex)]
    )
    seen: set[str] = set()
    expected = False
    for second, kind in enumerate(orders):
        said: Statement = statement(kind, now=NOW.replace(second=second))
        standing.accept(standing.check(said.canonical), at=said.time)
        seen.add(said.sha256)
        expected = kind == "pause"

    assert (standing.pause is not None) is expected
    assert len(standing.history()) == len(seen)


@given(data=st.binary(max_size=2048))
@settings(deadline=None)
def test_a_list_of_patients_who_object_is_read_or_refused(folder: Path, data: bytes) -> None:
    for content in (data, b"patient_id\n" + data):
        path = folder / "exclusions.csv"
        path.write_bytes(content)
        try:
            ids = parse_exclusions(path)
        except DataError:
            continue
        assert all(one and one == one.strip() and "," not in one for one in ids)


@given(data=st.binary(max_size=2048))
@settings(deadline=None)
def test_bytes_that_are_no_settings_are_refused(folder: Path, data: bytes) -> None:
    path = folder / "site.toml"
    path.write_bytes(data)

    with pytest.raises(ConfigError):
        load_site_settings(path)


def keys_of(values: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested tables and lists."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    return [
        place
        for key, inner in pairs
        for place in (
            (*prefix, key),
            *(keys_of(inner, (*prefix, key)) if isinstance(inner, dict | list) else ()),
        )
    ]


TOML = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(place=st.sampled_from(keys_of(site_values())), value=TOML)
@settings(deadline=None)
def test_settings_with_any_value_replaced_are_read_or_refused(
    folder: Path, place: tuple[Any, ...], value: object
) -> None:
    values = site_values()
    table: Any = values
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    path = folder / "site.toml"
    try:
        path.write_text(tomli_w.dumps(values))
    except (TypeError, ValueError, UnicodeEncodeError):
        return  # not TOML at all

    try:
        loaded = load_site_settings(path)
    except ConfigError:
        return
    assert isinstance(loaded, SiteSettings)
