"""How much of what identifies people the recognisers find, on made-up notes in two languages.

The notes are made by rule, so the figure says which forms are known and not how real notes fare.
"""

import random
from dataclasses import dataclass
from typing import Final

from fedward_common.notes.scrub import card_check_digit, find_spans

NOTES: Final = 200
_FIRST: Final = ("Anna", "Johan", "Maria", "Peter", "Ingrid", "Samuel", "Leila", "Tomas")
_LAST: Final = ("Keller", "O'Brien", "Nguyen", "Rossi", "Smith", "Andersson", "Haddad")
_ENGLISH: Final = (
    "{name}, MRN {number}, was seen on {date}. Call {phone} or write to {mail}.",
    "Admitted {date}; the patient {name} (record no. {number}) lives alone. Phone {phone}.",
    "On {long_date} Mr. {last} returned with chest pain. Results to {mail}, SSN {ssn}.",
)
_CHINESE: Final = (
    "患者{zh_name}，身份证号{card}，住院号{number}，{zh_date}入院。联系电话{mobile}。",  # noqa: RUF001
    "{zh_date}复诊，{zh_name}诉胸痛三天，血压140/90mmHg。电话{mobile}，邮箱{mail}。",  # noqa: RUF001
)
_ZH_NAMES: Final = ("王小明", "李娜", "张伟", "欧阳雪", "陈静")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Of `there` identifiers of a kind, how many were found whole."""

    there: int
    found: int

    @property
    def share(self) -> float:
        """The recall."""
        return self.found / self.there if self.there else 1.0


def measured_recall(*, notes: int = NOTES, seed: int = 1) -> dict[str, Recall]:
    """Recall by kind of identifier; the same numbers at every call."""
    draws = random.Random(seed)  # noqa: S311 - made-up notes, no secret
    counts: dict[str, list[int]] = {}
    for number in range(notes):
        template = draws.choice(_CHINESE if number % 2 else _ENGLISH)
        values = _values(draws)
        text = template.format(**values)
        own = [values["name"], values["last"], values["zh_name"], values["number"]]
        spans = find_spans(text, own=own)
        for kind, value in values.items():
            place = text.find(value) if f"{{{kind}}}" in template else -1
            if place < 0:
                continue
            found = any(s.start <= place and place + len(value) <= s.end for s in spans)
            entry = counts.setdefault(kind, [0, 0])
            entry[0] += 1
            entry[1] += found
    return {kind: Recall(there=there, found=found) for kind, (there, found) in counts.items()}


def _values(draws: random.Random) -> dict[str, str]:
    year, month, day = draws.randint(1940, 2024), draws.randint(1, 12), draws.randint(1, 28)
    last = draws.choice(_LAST)
    digits = f"11010{draws.randint(1, 9)}{year:04d}{month:02d}{day:02d}{draws.randint(0, 999):03d}"
    months = ("January", "Feb", "March", "Apr", "May", "June", "July", "Aug", "Sept", "October")
    return {
        "name": f"{draws.choice(_FIRST)} {last}",
        "last": last,
        "number": str(draws.randint(100_000, 99_999_999)),
        "date": draws.choice((f"{year}-{month:02d}-{day:02d}", f"{day}/{month}/{year}")),
        "long_date": draws.choice(
            (f"{day} {draws.choice(months)} {year}", f"{draws.choice(months)} {day}, {year}")
        ),
        "phone": draws.choice(("+41 44 555 01 23", "(617) 555-0134", "617-555-0134")),
        "mail": f"{last.lower().replace(chr(39), '')}@example.org",
        "ssn": f"{draws.randint(100, 899)}-{draws.randint(10, 99)}-{draws.randint(1000, 9999)}",
        "zh_name": draws.choice(_ZH_NAMES),
        "card": digits + card_check_digit(digits),
        "mobile": f"1{draws.choice('3578')}{draws.randint(0, 999_999_999):09d}",
        "zh_date": f"{year}年{month}月{day}日",
    }
