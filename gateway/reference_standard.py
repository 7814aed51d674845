"""What holds where readers differ: one rule, stated, and what it left undecided."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from gateway.store.truth import KeptWord, Subject

Rule = Literal["majority", "adjudicator", "latest"]
UNDECIDED = ""
RULES: Mapping[Rule, str] = {
    "majority": "of several readers the majority; at a tie the truth is unknown",
    "adjudicator": "an adjudicator's newest word; without one, what all readers agree on",
    "latest": "the newest word of any reader",
}
"""What each rule says, for people."""


class Said(Protocol):
    """What one reader says of one subject."""

    @property
    def reader(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def read_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """What is taken for true of one subject."""

    subject: Subject
    value: str
    """``present``, ``absent``, ``ungradable``; empty where the rule decides nothing."""
    readers: int
    differ: bool
    """Whether readers say different things."""
    all_were_shown: bool
    """Whether every reader had seen what a model said before, so that their agreement is no independent evidence."""


def reference_standard(
    words: Iterable[KeptWord], rule: Rule, adjudicators: Sequence[str] = ()
) -> Mapping[Subject, Standard]:
    """The reference standard of every subject that somebody spoke of; superseded words do not count.

    Parameters
    ----------
    rule
        ``majority``: what more readers say than say anything else; nothing at a tie. ``adjudicator``: the newest word
        of an adjudicator; without one, what all agree on. ``latest``: the newest word of anybody.
    """
    said: defaultdict[Subject, list[KeptWord]] = defaultdict(list)
    for word in sorted(words, key=lambda each: each.truth_id):
        if word.superseded_at is None:
            said[word.subject].append(word)
    return {
        subject: Standard(
            subject=subject,
            value=standing_value(each, rule, frozenset(adjudicators)),
            readers=len(each),
            differ=len({word.value for word in each}) > 1,
            all_were_shown=all(word.agrees is not None for word in each),
        )
        for subject, each in said.items()
    }


def standing_value(said: Sequence[Said], rule: Rule, adjudicators: frozenset[str]) -> str:
    """What holds of one word a reader, in the order in which they came; empty where the rule decides nothing."""
    if rule == "latest":
        return _newest(said).value
    if rule == "adjudicator":
        deciding = [word for word in said if word.reader in adjudicators]
        if deciding:
            return _newest(deciding).value
        values = {word.value for word in said}
        return values.pop() if len(values) == 1 else UNDECIDED
    (value, most), *others = Counter(word.value for word in said).most_common()
    return UNDECIDED if others and others[0][1] == most else value


def _newest(said: Sequence[Said]) -> Said:
    """The word read last; of those at one time, or without one, what came last."""

    def age(place: int) -> tuple[bool, float, int]:
        at = said[place].read_at
        return at is not None, 0.0 if at is None else at.timestamp(), place

    return said[max(range(len(said)), key=age)]
