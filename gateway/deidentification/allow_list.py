"""Which attributes outside PS3.15 Table E.1-1 may stay, by SOP class, and why.

The standard lets such attributes stay. Here one stays only if the IOD of its object has it in a module with a reason,
or if it is a parameter of acquisition, geometry or display that objects of another kind often carry too (Standard
Extended SOP Classes). All else goes. ``allow_list.json`` is made by
``scripts/make_deidentification_table.py`` from the modules of PS3.3 and the reasons in ``scripts/allowed_modules.py``.

References
----------
PS3.3 Annex A (IODs) and Annex C (modules); PS3.2 3.11 (Standard Extended SOP Class).
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any


@functools.cache
def _table() -> dict[str, Any]:
    path = importlib.resources.files("gateway.deidentification") / "allow_list.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@functools.cache
def _top_level(iod: str) -> Mapping[int, str]:
    """Tag to reason of what may stay at the top level of an IOD."""
    table = _table()
    modules = table["modules"]
    own = set(table["iods"][iod]["modules"])
    reasons = {}
    for text, row in table["top_level"].items():
        of_iod = [name for name in row["modules"] if name in own]
        lent = [name for name in row["modules"] if modules[name]["lent"]]
        if of_iod:
            reasons[int(text, 16)] = f"allow-list: {modules[of_iod[0]]['reason']}"
        elif lent:
            reasons[int(text, 16)] = f"allow-list: {modules[lent[0]]['reason']} (of another IOD)"
        elif "reason" in row:
            reasons[int(text, 16)] = f"allow-list: {row['reason']}"
    return reasons


@functools.cache
def _nested() -> Mapping[tuple[int, int], str]:
    """Parent and tag to reason of what may stay in a sequence."""
    modules = _table()["modules"]
    reasons = {}
    for path, row in _table()["nested"].items():
        parent, tag = path.split(">")
        reasons[int(parent, 16), int(tag, 16)] = f"allow-list: {modules[row['module']]['reason']}"
    return reasons


def allowed(tag: int, parent: int | None, sop_class_uid: str) -> str | None:
    """The reason why the attribute may stay in such an object, None if it may not.

    Parameters
    ----------
    tag
        Of an attribute that Table E.1-1 does not list.
    parent
        The sequence in whose item it lies, None at the top level.
    sop_class_uid
        (0008,0016) *SOP Class UID* of the object; one that is not known allows nothing.
    """
    iod = _table()["sop_classes"].get(sop_class_uid)
    if iod is None:
        return None
    if parent is None:
        return _top_level(iod).get(tag)
    if parent >> 16 & 1:  # items of a private sequence that the site declared safe
        return _top_level(iod).get(tag) or _anywhere().get(tag)
    return _nested().get((parent, tag))


@functools.cache
def _anywhere() -> Mapping[int, str]:
    """Tag to reason of what may stay in some sequence."""
    return {tag: reason for (_, tag), reason in _nested().items()}


def _sop_classes(*, accepted: bool) -> frozenset[str]:
    table = _table()
    return frozenset(
        sop_class for sop_class, iod in table["sop_classes"].items() if table["iods"][iod]["accepted"] is accepted
    )


@functools.cache
def accepted_sop_classes() -> frozenset[str]:
    """The classes that models take: CR, DX, MG, CT, MR, US, SC, OP and their multi-frame and enhanced forms."""
    return _sop_classes(accepted=True)


@functools.cache
def known_sop_classes() -> frozenset[str]:
    """Those, and the classes that a site may add: an allow-list exists for them."""
    return accepted_sop_classes() | _sop_classes(accepted=False)


def __getattr__(name: str) -> frozenset[str]:
    """``ACCEPTED_SOP_CLASSES`` and ``KNOWN_SOP_CLASSES``, read when they are asked for."""
    if name == "ACCEPTED_SOP_CLASSES":
        return accepted_sop_classes()
    if name == "KNOWN_SOP_CLASSES":
        return known_sop_classes()
    raise AttributeError(name)
