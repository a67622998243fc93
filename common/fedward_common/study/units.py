"""Numbers from one UCUM unit to another; a unit nobody can convert is refused.

Conversions are affine and kept, so that every value of a pair of units takes the same two numbers
and equal values stay equal whatever source they came from.

Source: the Unified Code for Units of Measure 2.1; tables of `ucumvert` over `pint`.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final

from fedward_common.errors import ConfigError

Convert = Callable[[float, str | None], float | None]
"""(value, its unit) -> the value in the unit of the study; None where that cannot be known."""

ALIASES: Final = {
    "mmHg": "mm[Hg]",
    "mm Hg": "mm[Hg]",
    "bpm": "/min",
    "beats/min": "/min",
    "breaths/min": "/min",
    "1/min": "/min",
    "years": "a",
    "year": "a",
    "days": "d",
    "hours": "h",
    "°C": "Cel",
    "degC": "Cel",
    "°F": "[degF]",
    "degF": "[degF]",
    "K/uL": "10*3/uL",
    "10^3/uL": "10*3/uL",
    "10^9/L": "10*9/L",
    "lb": "[lb_av]",
    "lbs": "[lb_av]",
    "units/L": "U/L",
    "IU/L": "[IU]/L",
    "mg/dl": "mg/dL",
    "g/dl": "g/dL",
}
"""What hospitals write where UCUM has another code."""
_ONE: Final = "1"
MOST_PAIRS: Final = 4096
"""Unit texts come from records: what is kept of them is bounded."""


def check_unit(unit: str) -> None:
    """Returns when values can be converted to `unit`.

    Raises:
        ConfigError: it is no UCUM unit that is known here.
    """
    if _known(_code(unit)) is None:
        raise ConfigError(
            f"unit {unit!r}: expected a UCUM code that can be converted (mg/dL, mmol/L, mm[Hg], "
            "Cel, 1), found another; nobody could map values to it"
        )


def converter(unit: str, *, molar_mass: float | None = None) -> Convert:
    """A function from a value and its unit to the value in `unit`.

    A value without a unit is only taken where `unit` is 1: guessing would be wrong by a factor.

    Raises:
        ConfigError: as `check_unit`.
    """
    check_unit(unit)
    target = _code(unit)

    def convert(value: float, found: str | None) -> float | None:
        scale = affine(_code(found or _ONE), target, molar_mass)
        return None if scale is None else value * scale[0] + scale[1]

    return convert


@lru_cache(maxsize=MOST_PAIRS)
def affine(found: str, target: str, molar_mass: float | None = None) -> tuple[float, float] | None:
    """Factor and offset from one UCUM code to another; None where there is no conversion.

    Mass becomes substance and back by `molar_mass` in g/mol, where that is given.
    """
    if found == target:
        return 1.0, 0.0
    source, goal = _known(found), _known(target)
    if source is None or goal is None:
        return None
    bridges = [None] if molar_mass is None else [None, 1.0 / molar_mass, molar_mass]
    for number, bridge in enumerate(bridges):
        here = source
        if bridge is not None:
            per = "mol/g" if number == 1 else "g/mol"
            here = (source[0] * bridge, f"({source[1]}) * ({per})")
        scale = _affine(here, goal)
        if scale is not None:
            return scale
    return None


def _affine(found: tuple[float, Any], target: tuple[float, Any]) -> tuple[float, float] | None:
    from pint.errors import PintError  # noqa: PLC0415 - as in `_registry`

    registry = _registry()
    try:
        zero, one = (
            float(
                registry.Quantity(value * found[0], registry.Unit(str(found[1]))).m_as(
                    registry.Unit(str(target[1]))
                )
            )
            / target[0]
            for value in (0.0, 1.0)
        )
    except (PintError, ArithmeticError, AssertionError, ValueError):
        return None  # pint asserts on some pairs, such as decibels with a molar mass
    return one - zero, zero


@lru_cache(maxsize=MOST_PAIRS)
def _known(code: str) -> tuple[float, Any] | None:
    """(factor, pint unit) of a UCUM code, or None; an annotation alone is the unit 1."""
    from lark.exceptions import LarkError  # noqa: PLC0415 - as in `_registry`
    from pint.errors import PintError  # noqa: PLC0415

    if code.startswith("{") and code.endswith("}") and "/" not in code:
        code = _ONE
    if code == _ONE:
        return 1.0, "dimensionless"
    if not code.isascii() or len(code) > 64:
        return None
    try:
        found = _registry().from_ucum(code)
    except (LarkError, PintError, ValueError, TypeError, AttributeError, KeyError):
        return None
    magnitude = getattr(found, "magnitude", 1.0)
    return float(magnitude), str(getattr(found, "units", found))


@cache
def _registry() -> Any:
    # A second to load; only who has a unit to convert needs it.
    from ucumvert import PintUcumRegistry  # noqa: PLC0415

    return PintUcumRegistry()


def _code(unit: str) -> str:
    text = unit.strip()
    return ALIASES.get(text, text)
