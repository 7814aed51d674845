"""One run over one data set: the copy that leaves, made attribute by attribute.

Nothing is passed on by default. An attribute stays because a row or a rule keeps it and its value has the form it
should have; all else goes, at any depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pydicom import DataElement, Dataset, Sequence
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.uid import UID

from gateway.deidentification import codes, content, dates, lookup_tables, values
from gateway.deidentification.changes import ChangeRecord, Verb, tag_text
from gateway.deidentification.elements import (
    Element,
    decoded,
    decoded_text_of,
    element_of,
    empty_like,
    is_empty,
    text_of,
    texts,
)
from gateway.deidentification.evidence import transfer_syntax_of
from gateway.deidentification.graphics import GraphicsCleaner
from gateway.deidentification.icc import clean_icc_profile
from gateway.deidentification.identifiers import identifying_texts
from gateway.deidentification.options import DeidentificationProfile, Option
from gateway.deidentification.pixel_data import clean_pixel_data
from gateway.deidentification.profile import Action, Decision, Profile
from gateway.deidentification.pseudonyms import Pseudonyms
from gateway.deidentification.repeats import PatientWords, may_repeat
from gateway.deidentification.safe_private import SafePrivateList
from gateway.deidentification.text import TextCleaner
from gateway.deidentification.values import vr_of
from gateway.errors import DeidentificationError

if TYPE_CHECKING:
    from gateway.deidentification.burned_in_text import TextFinder

_PATIENT_ID = 0x00100020
_LONGEST = {"CS": 16, "SH": 16, "LO": 64, "ST": 1024, "LT": 10240}
_MULTIVALUED = frozenset(["CS", "LO", "SH", "UC"])
_DATE_VRS = frozenset(["DA", "DT", "TM"])
_KNOWN_VRS = values.VRS | {"US or SS", "OB or OW", "US or OW", "US or SS or OW"}
"""Those of the standard, and what pydicom has for elements whose VR depends on others."""


@dataclass(slots=True)
class Rules:
    """What holds for every object of one de-identifier."""

    chosen: DeidentificationProfile
    profile: Profile
    pseudonyms: Pseudonyms
    safe_private: SafePrivateList
    meanings: codes.MeaningRule
    sop_classes: frozenset[str]
    """Those that are taken."""
    text_finder: TextFinder | None


@dataclass(slots=True)
class _Level:
    """A data set or item that is being copied."""

    source: Dataset
    target: Dataset
    parent: int | None
    path: str = ""
    keeps_codes: bool = False
    """In a sequence that an option keeps: codes stay whatever their scheme."""
    is_age: bool = False
    """In the content item that holds the subject's age."""
    is_blank: bool = False
    """A content item that may not stay, but whose place other items refer to."""
    safe: frozenset[int] | None = None
    """Private attributes that stay, once they were looked for."""


class Copy:
    """One run over one data set. Its work list stands in for recursion, so that depth costs no stack."""

    def __init__(self, rules: Rules, original: Dataset, changes: ChangeRecord | None) -> None:
        self._chosen, self._profile, self._names = rules.chosen, rules.profile, rules.pseudonyms
        self._safe_private, self._sop_classes = rules.safe_private, rules.sop_classes
        self._options = rules.chosen.options
        self._original = original
        self._changes = changes
        self.transfer_syntax_uid = transfer_syntax_of(original)
        syntax = UID(self.transfer_syntax_uid)
        self._is_implicit, self._is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
        self.sop_class_uid = text_of(original, 0x00080016)
        # Without an ID nothing says that two studies are of one patient: the study stands in.
        self.patient_id = decoded_text_of(original, _PATIENT_ID) or f"study {text_of(original, 0x0020000D)}"
        self._shift_days = self._names.date_shift_days(self.patient_id)
        self._text_finder, self._meanings = rules.text_finder, rules.meanings
        self._cleaner: TextCleaner | None = None
        self._patient_words: PatientWords | None = None
        self._content: content.ContentRules | None = None
        self._graphics: GraphicsCleaner | None = None
        self._overlays: dict[int, DataElement] | None = None
        self._by_position: bool | None = None
        self._fell_back = False
        self._work: list[_Level] = []

    def make(self) -> Dataset:
        """The copy, without evidence and file meta.

        Raises
        ------
        DeidentificationError
            If the object is of a kind that is not taken, or holds what cannot be vouched for.
        """
        if not values.is_well_known_uid(0x00080016, self.sop_class_uid):
            raise DeidentificationError("the SOP class is private or missing; expected one of PS3.4 Annex B")
        if self.sop_class_uid not in self._sop_classes:
            raise DeidentificationError(
                f"objects of SOP class {UID(self.sop_class_uid).name} are not taken; expected one that models "
                "take, or that further_sop_classes lists"
            )
        if not text_of(self._original, 0x00080018):
            raise DeidentificationError("the object has no SOP Instance UID; expected one")
        copy = empty_like(self._original)
        self._work.append(_Level(self._original, copy, None))
        while self._work:
            level = self._work.pop()
            for tag in level.source.keys():  # noqa: SIM118 - iterating the data set would decode every value
                self._copy_element(level, int(tag))
        return copy

    def _copy_element(self, level: _Level, tag: int) -> None:
        decision = self._profile.decide(tag, level.parent, self.sop_class_uid)
        element = cast(Element, level.source.get_item(tag, keep_deferred=True))
        if element.VR is not None and element.VR not in _KNOWN_VRS:
            raise DeidentificationError(
                f"the element {tag_text(tag)} has a VR that is not of the standard; expected one of PS3.5 6.2"
            )
        result = None
        if decision.action is not Action.REMOVE and not (level.is_blank and tag not in content.STRUCTURE):
            if isinstance(element, RawDataElement) and element.value is None and element.length:
                element = element_of(level.source, tag) or element  # left in the file until asked for
            result = self._result(level, tag, element, decision)
            if result is not None:
                level.target[tag] = result
        if self._changes is not None:
            self._note(level, tag, decision, element, result)

    def _result(self, level: _Level, tag: int, element: Element, decision: Decision) -> Element | None:
        """What stands for the element in the copy, None for nothing."""
        action = decision.action
        if action is Action.PRIVATE:
            return self._private(level, tag, element)
        if action is Action.UNKNOWN:
            if not is_empty(element) and self._chosen.unknown_attributes == "quarantine":
                raise DeidentificationError(
                    f"the element {tag_text(tag)} is not an attribute of the standard; expected one of PS3.6, or "
                    'unknown_attributes = "remove"'
                )
            return None
        if action in (Action.PATIENT_ID, Action.PATIENT_NAME):
            pseudonym = self._pseudonym_in(level)
            return DataElement(tag, vr_of(tag), pseudonym if action is Action.PATIENT_ID else f"PSEUDONYM^{pseudonym}")
        if is_empty(element):
            return None if action is Action.PIXELS else DataElement(tag, vr_of(tag), None)
        if action is Action.KEEP:
            if tag in lookup_tables.DESCRIPTORS:
                return self._table(level, element)
            kept = self._kept(level, element)
            return self._fallback(level, tag) if kept is not None and self._tells_who(tag, kept) else kept
        if action in (Action.CLEAN_ITEMS, Action.KEEP_ITEMS, Action.CLEAN_CONTENT):
            return self._items(level, element, action)
        handler = _HANDLERS.get(action)
        if handler is not None:
            return handler(self, level, element)
        return _dummy(tag, vr_of(tag)) if action is Action.DUMMY else DataElement(tag, vr_of(tag), None)

    def _fallback(self, level: _Level, tag: int) -> DataElement | None:
        """For a value that may not stay: nothing, or what the IOD needs."""
        self._fell_back = True
        if tag >> 16 & 1:
            return None
        action = self._profile.fallback(tag, level.parent, self.sop_class_uid)
        if action is Action.REMOVE:
            return None
        return _dummy(tag, vr_of(tag)) if action is Action.DUMMY else DataElement(tag, vr_of(tag), None)

    # --- values that stay -------------------------------------------------------------------------------------------

    def _kept(self, level: _Level, element: Element) -> Element | None:
        tag = int(element.tag)
        if level.is_age and tag == content.NUMERIC_VALUE:
            capped = content.capped_age(level.source)
            if capped is not None:
                return DataElement(tag, "DS", capped) if capped else self._fallback(level, tag)
        declared = element.VR or values.vr_in_dictionary(tag)
        if declared == "UN" or not values.compatible(tag, declared):
            readable = decoded(level.source, element) if declared == "UN" else None
            if readable is None or readable.VR == "UN":
                return self._fallback(level, tag)
            element, declared = readable, readable.VR
        return self._kept_value(level, element, declared)

    def _kept_value(self, level: _Level, element: Element, declared: str) -> Element | None:
        """The element if its value has the form of its VR."""
        tag = int(element.tag)
        if isinstance(element, RawDataElement) and self._is_foreign(element):
            readable = decoded(level.source, element)
            if readable is None:
                return self._fallback(level, tag)
            element = readable
        if isinstance(element, RawDataElement):
            value = values.kept_value(tag, declared, cast(bytes, element.value))
            if value is None:
                return self._unfit(level, element, declared)
            if tag != 0x00080005 and declared in ("LO", "SH", "ST", "LT", "UC", "UT") and not _is_plain(value):
                # Bytes of another character set are decoded here and encoded again when written.
                return decoded(level.source, element) or self._fallback(level, tag)
            return element if value == element.value else element._replace(value=value, length=len(value))
        if isinstance(element.value, bytes):
            kept = values.kept_value(tag, declared, element.value)
            return self._unfit(level, element, declared) if kept is None else DataElement(tag, declared, kept)
        return self._kept_decoded(level, element)

    def _unfit(self, level: _Level, element: Element, declared: str) -> DataElement | None:
        """For a value that has not the form of its VR; what should be a UID becomes one, since objects need theirs."""
        return self._replaced_uid(level, element) if declared == "UI" else self._fallback(level, int(element.tag))

    def _tells_who(self, tag: int, kept: Element) -> bool:
        """Whether a text about a device, or a term, repeats the patient's name or number."""
        if not may_repeat(tag) or is_empty(kept):
            return False
        if self._patient_words is None:
            self._patient_words = PatientWords(self._original)
        return self._patient_words.are_in(texts(kept))

    def _table(self, level: _Level, element: Element) -> Element | None:
        """A palette or look-up table, without what lies behind its last entry."""
        tag = int(element.tag)
        kept = self._kept(level, element)
        if kept is None or is_empty(kept):
            return kept
        if isinstance(kept, RawDataElement):
            value = lookup_tables.trimmed(level.source, tag, cast(bytes, kept.value))
            return self._fallback(level, tag) if value is None else kept._replace(value=value, length=len(value))
        trim = lookup_tables.trimmed if isinstance(kept.value, bytes) else lookup_tables.trimmed_numbers
        table = trim(level.source, tag, kept.value)
        return self._fallback(level, tag) if table is None else DataElement(tag, kept.VR, table)

    def _is_foreign(self, element: RawDataElement) -> bool:
        """Whether the element is not encoded as the transfer syntax says, so that its bytes cannot be written again."""
        as_implicit = element.is_implicit_VR or element.VR is None
        return as_implicit != self._is_implicit or element.is_little_endian != self._is_little_endian

    def _kept_decoded(self, level: _Level, element: DataElement) -> DataElement | None:
        """:meth:`_kept_value` for an element whose value was set or read as Python objects."""
        tag, vr = int(element.tag), element.VR
        parts = list(element.value) if isinstance(element.value, MultiValue | list | tuple) else [element.value]
        if all(isinstance(part, int | float) for part in parts) and vr not in ("DS", "IS"):
            size = {"FD": 8, "SV": 8, "UV": 8, "US": 2, "SS": 2, "US or SS": 2}.get(vr, 4)
            encoded = values.kept_value(tag, vr, bytes(size * len(parts)))
            return self._unfit(level, element, vr) if encoded is None else DataElement(tag, vr, _one_or_list(parts))
        text = "\\".join("" if part is None else str(part) for part in parts).encode("utf-8", "replace")
        kept = values.kept_value(tag, vr, text)
        if kept is None:
            return self._unfit(level, element, vr)
        if kept == text:
            return DataElement(tag, vr, _one_or_list(parts))
        return DataElement(tag, vr, kept.decode("utf-8", "replace").rstrip(" "))

    # --- values that are made anew ----------------------------------------------------------------------------------

    def _items(self, level: _Level, element: Element, action: Action) -> DataElement | None:
        """A sequence, its items still to be done."""
        tag = int(element.tag)
        readable = decoded(level.source, element)
        if readable is None or readable.VR != "SQ":
            return self._fallback(level, tag)
        of_content = action is Action.CLEAN_CONTENT or (tag == 0x00400612 and level.parent == 0x00400610)
        copies = []
        for number, item in enumerate(readable.value):
            path = "" if self._changes is None else f"{level.path}{tag_text(tag)}[{number}]>"
            below = _Level(item, empty_like(item), tag, path, level.keeps_codes or action is Action.KEEP_ITEMS)
            below.is_age = content.is_age(item) if of_content else level.is_age
            if of_content and not self._keeps_content(item):
                if not self._refers_by_position():
                    if self._changes is not None:
                        self._changes.add(path, content.VALUE_TYPE, "removed", _ITEM)
                    continue
                below.is_blank = True
                content.blank(below.target)
            copies.append(below.target)
            self._work.append(below)
        if not copies and len(readable.value):
            return self._fallback(level, tag)
        return DataElement(element.tag, "SQ", Sequence(copies))

    def _keeps_content(self, item: Dataset) -> bool:
        if self._content is None:
            self._content = content.ContentRules(self._options, self._clean_text, self._shift_days)
        return self._content.keeps(item)

    def _refers_by_position(self) -> bool:
        if self._by_position is None:
            self._by_position = content.refers_by_position(self._original)
        return self._by_position

    def _text_cleaner(self) -> TextCleaner:
        if self._cleaner is None:
            self._cleaner = TextCleaner(identifying_texts(self._original))
        return self._cleaner

    def _clean_text(self, text: str) -> str:
        return self._text_cleaner().clean(text)

    def _cleaned_text(self, level: _Level, element: Element) -> DataElement | None:
        tag = int(element.tag)
        readable = decoded(level.source, element)
        if readable is None or readable.VR == "UN":
            return self._fallback(level, tag)
        vr = vr_of(tag)
        parts = texts(readable) if vr in _MULTIVALUED else ["\\".join(texts(readable))]
        cleaned = [_cut(self._clean_text(part), vr) if part else "" for part in parts]
        if vr == "CS":
            cleaned = [each.upper() if values.kept_value(tag, vr, each.upper().encode()) else "" for each in cleaned]
        return DataElement(tag, vr, _one_or_list(cleaned)) if any(cleaned) else self._fallback(level, tag)

    def _shifted(self, level: _Level, element: Element) -> DataElement | None:
        tag, vr = int(element.tag), vr_of(int(element.tag))
        value = "\\".join(texts(element)).encode("ascii", "replace")
        shifted = dates.shifted(vr, value, self._shift_days)
        return self._fallback(level, tag) if shifted is None else DataElement(tag, vr, shifted.decode().rstrip(" "))

    def _replaced_uid(self, level: _Level, element: Element) -> DataElement | None:
        tag = int(element.tag)
        replaced = [
            original if not original or values.is_well_known_uid(tag, original) else self._names.uid(original)
            for original in texts(element)
        ]
        return DataElement(tag, "UI", _one_or_list(replaced))

    def _code(self, level: _Level, element: Element) -> Element | None:
        """A code's parts: a public scheme's stay, a hospital's own become opaque but stay comparable."""
        if level.keeps_codes:
            return self._kept(level, element)
        tag, source = int(element.tag), level.source
        scheme = text_of(source, codes.SCHEME)
        value = decoded_text_of(source, codes.VALUE) or decoded_text_of(source, codes.LONG_VALUE)
        if codes.is_public(scheme, value) if value else scheme in values.PUBLIC_SCHEMES:
            if tag == codes.VERSION and not codes.is_version(text_of(source, tag)):
                return None
            given = decoded_text_of(source, tag)
            meaning = self._meanings.meaning(scheme, value, given) if tag == codes.MEANING else given
            return self._kept(level, element) if meaning == given else DataElement(tag, vr_of(tag), meaning)
        if tag == codes.VERSION:
            return None
        if tag == codes.SCHEME:
            return DataElement(tag, "SH", codes.LOCAL_SCHEME)
        if tag == codes.MEANING:
            described = Option.CLEAN_DESCRIPTORS in self._options
            meaning = _cut(self._clean_text(decoded_text_of(source, tag)), "LO") if described else ""
            return DataElement(tag, "LO", meaning or codes.LOCAL_MEANING)
        return DataElement(tag, vr_of(tag), self._names.local_code(scheme, "\\".join(texts(element))))

    def _pseudonym_in(self, level: _Level) -> str:
        nested_id = "" if level.parent is None else decoded_text_of(level.source, _PATIENT_ID)
        return self._names.patient(nested_id or self.patient_id)

    def _person_name(self, level: _Level, element: Element) -> DataElement:
        readable = decoded(level.source, element)
        return DataElement(element.tag, "PN", self._names.person(texts(readable or element)[0]))

    def _pixels(self, level: _Level, element: Element) -> DataElement | None:
        # Pixel data in an item are a reduced copy of some picture, which nothing here could clean.
        return clean_pixel_data(self._original, element, self.transfer_syntax_uid) if level.parent is None else None

    def _icc_profile(self, level: _Level, element: Element) -> DataElement | None:
        value = clean_icc_profile(element.value) if isinstance(element.value, bytes) else None
        return self._fallback(level, int(element.tag)) if value is None else DataElement(element.tag, "OB", value)

    def _clean_graphics(self, level: _Level, element: Element) -> DataElement | None:
        tag = int(element.tag)
        if self._graphics is None:
            new_uid = str if Option.RETAIN_UIDS in self._options else self._names.uid
            self._graphics = GraphicsCleaner(self._text_cleaner(), new_uid, self._text_finder)
        if tag >> 16 == 0x0070:
            return self._graphics.sequence(level.source, tag) or self._fallback(level, tag)
        if level.parent is not None or tag >> 16 < 0x6000:  # curves never stay
            return None
        if self._overlays is None:
            self._overlays = {int(each.tag): each for each in self._graphics.overlays(level.source)}
        return self._overlays.get(tag)

    def _private(self, level: _Level, tag: int, element: Element) -> Element | None:
        """A private attribute that the site declared safe: dates and UIDs go by the options, sequences are cleaned."""
        if level.safe is None:
            level.safe = self._safe_private.tags_in(level.source)
        if tag not in level.safe or is_empty(element):
            return None
        if element.VR in (None, "UN"):
            readable = decoded(level.source, element)
            if readable is None:
                return None
            element = readable
        vr = element.VR
        if vr == "SQ":
            return self._items(level, element, Action.CLEAN_ITEMS)
        if vr == "PN":
            return None
        if vr == "UI" and Option.RETAIN_UIDS not in self._options:
            return self._replaced_uid(level, element)
        if vr in _DATE_VRS:
            return self._private_date(level, element)
        if vr == "UN":
            return DataElement(tag, "UN", element.value)
        return self._kept_value(level, element, cast(str, vr))

    def _private_date(self, level: _Level, element: Element) -> DataElement | None:
        if Option.RETAIN_LONGITUDINAL_MODIFIED_DATES in self._options:
            days = self._shift_days
        elif Option.RETAIN_LONGITUDINAL_FULL_DATES in self._options:
            days = 0
        else:
            return None
        vr = cast(str, element.VR)
        moved = dates.shifted(vr, "\\".join(texts(element)).encode("ascii", "replace"), days)
        return None if moved is None else DataElement(element.tag, vr, moved.decode().rstrip(" "))

    # --- the record -------------------------------------------------------------------------------------------------

    def _note(self, level: _Level, tag: int, decision: Decision, before: Element, after: Element | None) -> None:
        assert self._changes is not None
        reason = decision.reason
        if decision.action is Action.PRIVATE and after is not None:
            reason = "E.1-1 Retain Safe Private: C"
        if self._fell_back:
            reason += "; what could not stay"
            self._fell_back = False
        self._changes.add(level.path, tag, _verb(decision.action, before, after), reason)


_HANDLERS: dict[Action, Callable[[Copy, _Level, Element], Element | None]] = {
    Action.CLEAN_TEXT: Copy._cleaned_text,
    Action.SHIFT: Copy._shifted,
    Action.REPLACE_UID: Copy._replaced_uid,
    Action.CODE: Copy._code,
    Action.PIXELS: Copy._pixels,
    Action.ICC_PROFILE: Copy._icc_profile,
    Action.PERSON_NAME: Copy._person_name,
    Action.CLEAN_GRAPHICS: Copy._clean_graphics,
}
_ITEM = "E.1-1 Clean Structured Content: C; a content item that cannot be cleaned"


def _verb(action: Action, before: Element, after: Element | None) -> Verb:
    """What was done, in one word."""
    if after is None:
        return "removed"
    if is_empty(after):
        return "kept" if is_empty(before) else "emptied"
    if after.VR == "SQ" or action in (Action.PIXELS, Action.ICC_PROFILE):
        return "cleaned"
    if after is before or texts(after) == texts(before):
        return "kept"
    if action is Action.REPLACE_UID:
        return "new UID"
    if after.VR in _DATE_VRS and action in (Action.SHIFT, Action.PRIVATE):
        return "shifted"
    if after.VR == "AS":
        return "capped"
    return "cleaned" if action in (Action.KEEP, Action.CLEAN_TEXT, Action.PRIVATE) else "replaced"


def _is_plain(value: bytes) -> bool:
    return value.isascii() and b"\x1b" not in value


def _one_or_list(parts: list[str] | list[object]) -> object:
    return parts[0] if len(parts) == 1 else list(parts)


def _cut(text: str, vr: str) -> str:
    """At most as long as the VR allows, at the end of a word."""
    longest = _LONGEST.get(vr, len(text))
    return text if len(text) <= longest else text[:longest].rpartition(" ")[0]


def _dummy(tag: int, vr: str) -> DataElement:
    if vr == "SQ":
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "REMOVED", "99GATEWAY", "Removed"
        return DataElement(tag, vr, Sequence([code]))
    return DataElement(tag, vr, values.DUMMIES[vr])
