"""What is planted: unique texts of the kinds that identify, and every byte form in which one may survive.

Knows nothing of the gateway.

References
----------
PS3.15 E.1 and E.3; 45 CFR 164.514(b)(2) (the kinds of identifier); PS3.3 C.12.1.1.2 (character sets).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import date, timedelta

NEVER: frozenset[str] = frozenset()
DEVICE = frozenset({"retain_device_identity"})
INSTITUTION = frozenset({"retain_institution_identity"})
CHARACTERISTICS = frozenset({"retain_patient_characteristics"})
DATES = frozenset({"retain_longitudinal_full_dates"})
UIDS = frozenset({"retain_uids"})
SAFE_PRIVATE = frozenset({"retain_safe_private"})
"""Options of PS3.15 E.3 under which a planted text may stay where it is: those with K in its row of Table E.1-1."""

_SYLLABLES = (
    "vra", "zel", "kov", "bru", "dym", "gzo", "hul", "jen", "lyk", "mor", "nax", "pyr", "qui", "rud", "sva", "tob",
    "ulf", "wer", "xan", "yve", "zad", "fje", "cho", "ost",
)  # fmt: skip
_STREETS = ("Lane", "Road", "Street", "Avenue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """One identifier in one object."""

    token: str
    place: str
    """Where it is: a path of tags, or words for a place outside the data set."""
    category: str
    kept_by: frozenset[str] = NEVER
    """Options under which the standard keeps it, by their names in ``gateway`` profiles."""

    def may_stay(self, options: frozenset[str]) -> bool:
        """Whether one of the options keeps it.

        Modified Dates moves dates by whole days, which leaves times of day (their rows have C, as those of dates).
        """
        is_time = self.category == "time" and bool(self.kept_by & DATES)
        return bool(self.kept_by & options) or (is_time and "retain_longitudinal_modified_dates" in options)


def byte_forms(token: str) -> tuple[bytes, ...]:
    """Every encoding in which a token is looked for; ASCII ones in lower case."""
    forms: list[bytes] = []
    for encoding in (
        "ascii", "latin-1", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "iso2022_jp", "iso2022_jp_2", "shift_jis",
        "euc_jp", "gb18030", "cp037",
    ):  # fmt: skip
        try:
            made = token.encode(encoding)
        except UnicodeEncodeError:
            continue
        if encoding.startswith("iso2022"):
            made = made.replace(b"\x1b$B", b"").replace(b"\x1b(B", b"")
        made = made.lower() if token.isascii() else made
        if made not in forms and len(made) >= 6:
            forms.append(made)
    return tuple(forms)


@dataclass(slots=True)
class Planter:
    """Makes identifiers that occur nowhere else, and notes each."""

    rng: random.Random
    taken: set[str]
    plants: list[Plant] = field(default_factory=list)

    def _unique(self, make: object) -> str:
        assert callable(make)
        while True:
            token = str(make())
            if token not in self.taken:
                self.taken.add(token)
                return token

    def note(self, token: str, place: str, category: str, kept_by: frozenset[str] = NEVER) -> str:
        """Note a text that was made elsewhere."""
        self.plants.append(Plant(token=token, place=place, category=category, kept_by=kept_by))
        return token

    def word(self) -> str:
        """A surname of four syllables, not noted."""
        return self._unique(lambda: "".join(self.rng.sample(_SYLLABLES, 4)).capitalize())

    def surname(self, place: str, category: str = "name", kept_by: frozenset[str] = NEVER) -> str:
        """A surname, noted."""
        return self.note(self.word(), place, category, kept_by)

    def person(self, place: str) -> str:
        """``Surname^Given``, the surname noted."""
        return f"{self.surname(place)}^{self.rng.choice(('Maria', 'Ivan', 'Lena', 'Omar'))}"

    def identifier(self, place: str, category: str = "identifier", kept_by: frozenset[str] = NEVER) -> str:
        """An ID such as ``RX70482615``."""
        letters = "".join(self.rng.choices("BCDFGHJKLMNPQRSTVWXZ", k=2))
        return self.note(self._unique(lambda: f"{letters}{self.rng.randrange(10**7, 10**8)}"), place, category, kept_by)

    def phone(self, place: str) -> str:
        """A telephone number."""
        number = self._unique(lambda: f"+49 {self.rng.randrange(200, 999)} {self.rng.randrange(10**6, 10**7)}")
        return self.note(number, place, "telephone")

    def mail(self, place: str) -> str:
        """An address of electronic mail; its local part is noted."""
        return self.note(self._unique(lambda: f"{self.word().lower()}@clinic.example"), place, "e-mail")

    def host(self, place: str) -> str:
        """A host's name."""
        return self.note(self._unique(lambda: f"{self.word().lower()}.hospital.example"), place, "host")

    def url(self, place: str) -> str:
        """A URL, its host noted."""
        return f"https://{self.host(place)}/wado"

    def address(self, place: str, kept_by: frozenset[str] = NEVER) -> str:
        """A postal address, its street noted."""
        street = f"{self.word()} {self.rng.choice(_STREETS)}"
        return f"{self.rng.randrange(1, 200)} {self.note(street, place, 'address', kept_by)}, Springfield"

    def ae_title(self, place: str, kept_by: frozenset[str] = NEVER) -> str:
        """An application entity title."""
        return self.note(self._unique(lambda: f"{self.word().upper()[:9]}{self.rng.randrange(100, 999)}"), place,
                         "AE title", kept_by)  # fmt: skip

    def day(self, place: str, kept_by: frozenset[str] = NEVER, *, category: str = "date") -> str:
        """A date as DA."""
        start = date(1948, 1, 1)
        made = self._unique(lambda: f"{start + timedelta(days=self.rng.randrange(27000)):%Y%m%d}")
        return self.note(made, place, category, kept_by)

    def time(self, place: str, kept_by: frozenset[str] = NEVER) -> str:
        """A time as TM, with microseconds."""
        made = self._unique(
            lambda: (
                f"{self.rng.randrange(24):02}{self.rng.randrange(60):02}{self.rng.randrange(60):02}"
                f".{self.rng.randrange(100000, 999999)}"
            )
        )
        return self.note(made, place, "time", kept_by)

    def moment(self, place: str, kept_by: frozenset[str] = NEVER) -> str:
        """A date with time as DT."""
        start = date(1948, 1, 1)
        made = self._unique(
            lambda: (
                f"{start + timedelta(days=self.rng.randrange(27000)):%Y%m%d}{self.rng.randrange(24):02}"
                f"{self.rng.randrange(60):02}{self.rng.randrange(60):02}.{self.rng.randrange(100000, 999999)}"
            )
        )
        return self.note(made, place, "date and time", kept_by)

    def new_uid(self) -> str:
        """A UID that occurs nowhere else, not noted."""
        return self._unique(lambda: f"1.2.826.0.1.3680043.10.{self.rng.randrange(10**17, 10**18)}")

    def uid(self, place: str, kept_by: frozenset[str] = UIDS) -> str:
        """A UID, noted."""
        return self.note(self.new_uid(), place, "UID", kept_by)
