"""Totals of a study of statistics, and the figures, table and constants that follow from them."""

import math
import tomllib
from typing import Any

import numpy as np
import pytest

from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError, ProtocolError, StudyFailed
from fedward_common.ids import SiteId
from fedward_common.privacy.randomness import Csprng
from fedward_common.privacy.statistics import SystemIntegers, exact_sums, noised
from fedward_common.study.files import SiteKeys
from fedward_common.study.statistics import ColumnStatistics, Table
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_server.fleet import Silent
from fedward_server.report.statistics import (
    constants_toml,
    statistics_json,
    statistics_text,
)
from fedward_server.report.statistics_figure import statistics_svg
from fedward_server.sandbox.statistics import exact_result
from fedward_server.statistics import StatisticsSum, Totals, column_figures
from fedward_server.study_run import StudyRun
from tests.support.federation import FakeClock, FakeFleet, FakeStore
from tests.support.statistics import CountingSite, a_release, rows_of, statistics_study
from tests.support.studies import SITES, key_digest

MOMENTS = a_release(columns=["age"], statistics=["count", "missing", "mean", "variance"])
ROWS = rows_of(*((f"p{n}", str(30 + n % 50), str(1 + n % 3)) for n in range(400)))
STUDY = statistics_study()
RELEASE = STUDY.releases[0]
assert isinstance(RELEASE, ColumnStatistics)


def totals(*values: float, shown: int = 4) -> Totals:
    return Totals(values=values, shown=(shown,) * len(values), answered=4)


def a_result(**changes: Any) -> dict[str, Any]:
    """The result over four sites with ROWS each, no noise in it."""
    exact = exact_sums(RELEASE, STUDY.data, ROWS) * 4
    total = Totals(values=tuple(exact.tolist()), shown=(4,) * len(exact), answered=4)
    return statistics_json(STUDY, [total], refusals={}, epsilon={"north": 1.0}) | changes


def test_totals_add_what_the_sites_show_and_count_who_shows_it() -> None:
    study = statistics_study(releases=[MOMENTS])
    added = StatisticsSum(study, study.releases[0])  # type: ignore[arg-type]
    added.add(SiteId("north"), canonical_json({"values": [20.0, 11.0, -3.5, 2.25]}))
    added.add(SiteId("east"), canonical_json({"values": [30.5, None, 1.5, 4.0]}))
    added.add(SiteId("west"), canonical_json({"values": [None, None, None, None]}))

    found = added.totals()

    assert found.values == (50.5, 11.0, -2.0, 6.25)
    assert found.shown == (2, 1, 2, 2)
    assert found.answered == 3
    assert Totals.from_json(found.as_json()) == found


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"values":[1]}',
        b'{"values":[20,11,-3.5,"x"]}',
        b'{"values":[20,11,-3.5,0.3]}',
        b'{"values":[20,11,-3.5,1e999]}',
        b'{"values":[20,11,-3.5,true]}',
        b'{"values":[5,11,-3.5,2]}',
        b'{"values":[null,11,-3.5,2]}',
        b'{"values":[20,11,null,2]}',
        b'{"values":[20,11,-3.5,' + b"9" * 400 + b"]}",
    ],
)
def test_a_payload_that_is_not_exactly_the_release_is_not_added(payload: bytes) -> None:
    study = statistics_study(releases=[MOMENTS])
    added = StatisticsSum(study, study.releases[0])  # type: ignore[arg-type]

    with pytest.raises(ProtocolError):
        added.add(SiteId("north"), payload)

    with pytest.raises(RuntimeError):
        added.totals()


def test_figures_without_noise_are_those_of_the_patients() -> None:
    ages = np.array([float(row["age"]) for row in ROWS])
    exact = tuple(exact_sums(RELEASE, STUDY.data, ROWS).tolist())
    total = Totals(values=exact, shown=(1,) * len(exact), answered=1)

    age, pain = column_figures(RELEASE, STUDY.data, total, exact=True)

    assert age.figures["count"].value == 400
    assert age.figures["missing"].value == 0
    assert age.figures["mean"].value == pytest.approx(ages.mean())
    assert age.figures["variance"].value == pytest.approx(ages.var())
    assert [f.value for f in pain.histogram] == [134, 133, 133]
    for quantile in age.quantiles:
        # A bin is 20 years wide here.
        assert abs(quantile.value - np.quantile(ages, quantile.share)) < 20
        assert quantile.low == quantile.value == quantile.high


def test_standard_errors_are_those_of_the_noise() -> None:
    """2,000 noise draws: their spread has an SD of 1.6 %; 20 % is far out."""
    study = statistics_study(releases=[MOMENTS | {"min_cell_size": 1}])
    release = study.releases[0]
    assert isinstance(release, ColumnStatistics)
    exact = exact_sums(release, study.data, ROWS)
    found: dict[str, list[float]] = {"mean": [], "variance": []}
    errors: dict[str, float] = {}
    for _ in range(2000):
        values = noised(release, study.data, exact, noise=Csprng(), integers=SystemIntegers())
        total = Totals(values=tuple(values), shown=(1,) * 4, answered=1)
        (column,) = column_figures(release, study.data, total)
        for part in ("mean", "variance"):
            figure = column.figures[part]  # type: ignore[index]
            assert figure.value is not None
            assert figure.standard_error is not None
            found[part].append(figure.value)
            errors[part] = figure.standard_error

    for part, values in found.items():
        assert np.std(values) == pytest.approx(errors[part], rel=0.2)


def test_a_mean_is_not_given_where_the_count_is_lost_in_the_noise() -> None:
    study = statistics_study(releases=[MOMENTS | {"noise_multiplier": 50.0}])
    release = study.releases[0]
    assert isinstance(release, ColumnStatistics)

    (column,) = column_figures(release, study.data, totals(40.0, 12.0, 3.0, 9.0))

    assert column.figures["mean"].value is None
    assert column.figures["count"].value == 40.0


def test_withheld_cells_widen_the_interval_of_a_quantile() -> None:
    study = statistics_study(releases=[a_release(columns=["age"], statistics=["histogram"])])
    release = study.releases[0]
    assert isinstance(release, ColumnStatistics)
    whole = totals(50.0, 100.0, 100.0, 50.0)
    part = Totals(values=whole.values, shown=(1, 4, 4, 1), answered=4)

    (open_,), (closed,) = (column_figures(release, study.data, t) for t in (whole, part))

    for wide, narrow in zip(closed.quantiles, open_.quantiles, strict=True):
        assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high
    middle = closed.quantiles[1]
    assert middle.high - middle.low > open_.quantiles[1].high - open_.quantiles[1].low


def test_the_text_says_delta_noise_and_what_is_withheld() -> None:
    result = a_result()
    result["releases"][0]["columns"][0]["count"]["withheld_by"] = 2

    text = statistics_text(result)

    assert "ε = 9.000 at δ = 1e-4 per patient of one site" in text
    assert "standard error from the noise alone" in text
    assert "count by 2" in text
    assert "1600 ±" in text


def test_constants_for_a_next_study_lie_within_the_former_limits_and_are_a_schema() -> None:
    text = constants_toml(a_result())

    columns = tomllib.loads(text)["data"]["columns"]
    table = Table.model_validate({"kind": "table", "patient_key": "patient_id", "columns": columns})
    age, pain = table.columns
    ages = [float(row["age"]) for row in ROWS]
    reach = 3 * float(np.std(ages))
    assert age.low == pytest.approx(max(20.0, np.mean(ages) - reach), rel=0.01)  # type: ignore[union-attr]
    assert age.high == pytest.approx(min(100.0, np.mean(ages) + reach), rel=0.01)  # type: ignore[union-attr]
    assert age.low <= age.fill <= age.high  # type: ignore[union-attr,operator]
    assert pain.fill == "1"
    assert STUDY.digest in text


def test_a_column_that_says_too_little_keeps_its_limits() -> None:
    result = a_result()
    for figure in ("mean", "variance"):
        result["releases"][0]["columns"][0][figure]["value"] = None

    (age, _) = tomllib.loads(constants_toml(result))["data"]["columns"]

    assert (age["low"], age["high"], "fill" in age) == (20.0, 100.0, False)


def test_another_format_is_refused() -> None:
    for function in (statistics_text, constants_toml):
        with pytest.raises(ConfigError, match="fedward-statistics/1"):
            function({"format": "fedward-result/1"})


def test_the_figure_shows_true_beside_released() -> None:
    exact = exact_result(STUDY, {SiteId(site): ROWS for site in SITES})

    svg = statistics_svg(a_result(), exact)

    assert svg.count("<svg") == 1
    assert "patients by pain" in svg


def world(**changes: Any) -> tuple[StudyRun, dict[SiteId, CountingSite], Silent]:
    """A run over four counting sites."""
    keys = {SiteId(name): SigningKey.generate() for name in SITES}
    named = {
        name: SiteKeys(
            key_sha256=key_sha256(key.public_hex), node_key_sha256=key_digest(number + 500)
        )
        for number, (name, key) in enumerate(keys.items())
    }
    study = statistics_study(releases=[MOMENTS, MOMENTS], keys=named, **changes)
    values: list[list[float | int | None]] = [[20.0, 11.0, 1.0, 2.0], [30.0, None, 1.0, 2.0]]
    sites = {name: CountingSite(name=name, key=key, values=values) for name, key in keys.items()}
    clock, events = FakeClock(), Silent()
    run = StudyRun(
        study=study,
        signed_study=b"signed",
        fleet=FakeFleet(sites=sites, clock=clock),
        clock=clock,
        store=FakeStore(),
        events=events,
    )
    return run, sites, events


def test_a_study_of_statistics_asks_once_for_each_release_and_trains_nothing() -> None:
    run, sites, events = world()

    result = run.run()

    assert result.model == {}
    assert [t and t.values[0] for t in result.statistics] == [80.0, 120.0]
    assert result.facts["statistics"][1]["shown"] == [4, 0, 4, 4]
    for site in sites.values():
        assert [(i.kind, i.round) for i in site.seen] == [("statistics", 1), ("statistics", 2)]
    assert [name for name, _ in events.heard if name == "round.committed"] == [
        "round.committed",
        "round.committed",
    ]


def test_a_release_below_the_quorum_has_no_totals() -> None:
    run, sites, events = world(quorum=4)
    sites[SiteId("east")].values = [[20.0, 11.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]]

    result = run.run()

    assert [t is None for t in result.statistics] == [False, True]
    text = statistics_text(statistics_json(run.study, result.statistics, refusals={}))
    assert "fewer sites answered than the study's quorum" in text
    assert any(name == "round.abandoned" for name, _ in events.heard)


def test_a_study_without_any_totals_fails() -> None:
    run, sites, _ = world(quorum=4)
    sites[SiteId("east")].values = [[1.0] * 4] * 2

    with pytest.raises(StudyFailed, match="none of 2 rounds"):
        run.run()


def test_the_noise_of_a_total_grows_with_the_root_of_the_sites_in_it() -> None:
    (one,) = column_figures(RELEASE, STUDY.data, totals(*[50.0] * 13, shown=1))[:1]
    (four,) = column_figures(RELEASE, STUDY.data, totals(*[50.0] * 13, shown=4))[:1]

    alone, together = one.figures["count"].standard_error, four.figures["count"].standard_error
    assert alone is not None
    assert together == pytest.approx(2 * alone)
    assert math.isclose(alone, RELEASE.noise_multiplier * math.sqrt(6))
