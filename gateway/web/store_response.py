"""What a STOW-RS request is answered with: the Store Instances Response Module, in JSON or in XML.

*Retrieve URL* is Type 2 and always empty: nothing can be retrieved from the gateway, which is no archive.

References
----------
PS3.18 Table 10.5.3-1 (statuses), Annex I (the module), section F.2 (JSON). PS3.19 section A.1 (XML).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from gateway.multipart import MediaType

JSON = "application/dicom+json"
XML = "application/dicom+xml"
NATIVE_MODEL = "http://dicom.nema.org/PS3.19/models/NativeDICOM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one part."""

    failure_reason: int
    """(0008,1197); 0: stored."""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    message: str = ""
    """Why not, for the log and the Warning header; holds no PHI."""

    @property
    def is_stored(self) -> bool:
        """Whether the instance is on disk and committed."""
        return self.failure_reason == 0


@dataclass(frozen=True, slots=True)
class _Attribute:
    tag: str
    vr: str
    keyword: str
    values: tuple[str | int, ...] = ()
    items: tuple[tuple[_Attribute, ...], ...] = ()


def http_status(outcomes: Sequence[Outcome], *, refused: int = 0) -> int:
    """The status by PS3.18 Table 10.5.3-1.

    Parameters
    ----------
    refused
        The status that the request as a whole deserves where nothing of it was stored; 0 where nothing is wrong with
        it as a whole.
    """
    stored = sum(outcome.is_stored for outcome in outcomes)
    if stored:
        return 200 if stored == len(outcomes) and not refused else 202
    if refused or not outcomes:
        return refused or 400
    # Section 8.5, 503: the same request may succeed later, which 409 would deny.
    return 503 if all(outcome.failure_reason & 0xFF00 == 0xA700 for outcome in outcomes) else 409


def choose_media_type(accept: str) -> str | None:
    """The media type to answer in by an Accept header (RFC 9110 section 12.5.1); ``None`` where none fits."""
    best, best_weight = None, 0.0
    for text in accept.split(",") if accept.strip() else ["*/*"]:
        wanted = MediaType.parse(text.strip())
        try:
            weight = float(wanted.parameters.get("q", "1"))
        except ValueError:
            continue
        offered = {"*/*": JSON, "application/*": JSON, JSON: JSON, "application/json": JSON, XML: XML}.get(wanted.name)
        if offered is not None and weight > best_weight:
            best, best_weight = offered, weight
    return best


def encode(outcomes: Sequence[Outcome], media_type: str) -> bytes:
    """The module as a document of `media_type`."""
    attributes = _module(outcomes)
    if media_type == XML:
        body = "".join(_xml(attributes))
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><NativeDicomModel xmlns="{NATIVE_MODEL}" xml:space="preserve">'
            f"{body}</NativeDicomModel>"
        ).encode()
    return json.dumps(_json(attributes), separators=(",", ":")).encode()


def _module(outcomes: Sequence[Outcome]) -> tuple[_Attribute, ...]:
    """PS3.18 Table I.1-1, in order of tags."""
    stored, failed, unreadable = [], [], []
    for outcome in outcomes:
        reference = (
            _Attribute("00081150", "UI", "ReferencedSOPClassUID", (outcome.sop_class_uid,)),
            _Attribute("00081155", "UI", "ReferencedSOPInstanceUID", (outcome.sop_instance_uid,)),
        )
        reason = _Attribute("00081197", "US", "FailureReason", (outcome.failure_reason,))
        if outcome.is_stored:
            stored.append((*reference, _Attribute("00081190", "UR", "RetrieveURL")))
        elif outcome.sop_class_uid and outcome.sop_instance_uid:
            failed.append((*reference, reason))
        else:
            unreadable.append((reason,))
    sequences = (
        ("00081198", "FailedSOPSequence", failed),
        ("00081199", "ReferencedSOPSequence", stored),
        ("0008119A", "OtherFailuresSequence", unreadable),
    )
    return (
        _Attribute("00081190", "UR", "RetrieveURL"),
        *(_Attribute(tag, "SQ", name, items=tuple(items)) for tag, name, items in sequences if items),
    )


def _json(attributes: Sequence[_Attribute]) -> dict[str, object]:
    encoded: dict[str, object] = {}
    for each in sorted(attributes, key=lambda attribute: attribute.tag):
        values: list[object] = [*each.values, *(_json(item) for item in each.items)]
        encoded[each.tag] = {"vr": each.vr, "Value": values} if values else {"vr": each.vr}
    return encoded


def _xml(attributes: Sequence[_Attribute]) -> Iterator[str]:
    for each in sorted(attributes, key=lambda attribute: attribute.tag):
        yield f'<DicomAttribute tag="{each.tag}" vr="{each.vr}" keyword="{each.keyword}">'
        for number, value in enumerate(each.values, 1):
            yield f'<Value number="{number}">{escape(str(value))}</Value>'
        for number, item in enumerate(each.items, 1):
            yield f'<Item number="{number}">'
            yield from _xml(item)
            yield "</Item>"
        yield "</DicomAttribute>"
