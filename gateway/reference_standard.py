"""What holds where readers differ: one rule, stated, and what it left undecided."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.store.truth import KeptWord, Subject

Rule = Literal["majority", "adjudicator", "latest"]
UNDECIDED = ""


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
    for word in words:
        if word.superseded_at is None:
            said[word.subject].append(word)
    return {
        subject: Standard(
            subject=subject,
            value=_value(each, rule, frozenset(adjudicators)),
            readers=len(each),
            differ=len({word.value for word in each}) > 1,
            all_were_shown=all(word.agrees is not None for word in each),
        )
        for subject, each in said.items()
    }


def _value(said: Sequence[KeptWord], rule: Rule, adjudicators: frozenset[str]) -> str:
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


def _newest(said: Sequence[KeptWord]) -> KeptWord:
    def age(word: KeptWord) -> tuple[bool, object, int]:
        return word.read_at is not None, word.read_at, word.truth_id

    return max(said, key=age)
