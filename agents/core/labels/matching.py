"""Matches the text that a labeller answers to one of a model's classes, and never guesses between two.

A class name may list synonyms ("tabby, tabby cat"). An answer is tried in this order: the class name itself; a
synonym, after normalising case, punctuation and articles; the plural of one, or what one is the plural of; a close
spelling (``rapidfuzz``) of a synonym. As soon as a step finds two classes the answer is ambiguous, as are classes that
share a name and were told apart by their ids. Part of a name ("boot" for "ankle boot", "sea lion" for "lion") is never
a match: such classes are only offered as candidates for a person to choose from.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz import fuzz, process
from rapidfuzz.distance import OSA

from agents.core.labels.plurals import OF_THEIR_OWN, plurals
from data.class_names import as_given

DEFAULT_THRESHOLD = 88.0
"""Least similarity of a close spelling, 0 to 100: one letter off, or two exchanged, in nine letters."""
_CANDIDATE_SCORE = 60.0
_MAX_CANDIDATES = 5
_SEPARATORS = re.compile(r"[,;/|()\n]| or | and ")
_LEAD_IN = re.compile(
    r"^(?:(?:i think |i believe |probably |maybe )?(?:this|it|that|(?:the|this) (?:image|picture|photo|object))"
    r"(?: is| s| shows| depicts| contains| looks like)|answer|label|class|category)\b"
)
_ARTICLES = re.compile(r"^(?:(?:a|an|the|some)\s+)+")
_NEGATION = re.compile(
    r"\b(?:not|no|neither|nor|cannot|can t|isn t|doesn t|don t|unable|none|unknown|unsure|unclear)\b"
)
_UNKNOWN = frozenset({"", "n a", "na", "idk", "null", "other", "others", "something else", "dunno"})


@dataclass(frozen=True)
class Matched:
    """The answer means exactly one class."""

    index: int
    how: Literal["exact", "synonym", "fuzzy"]


@dataclass(frozen=True)
class Ambiguous:
    """The answer fits several classes, given as indices with the best first."""

    candidates: tuple[int, ...]
    reason: Literal["ambiguous"] = "ambiguous"


@dataclass(frozen=True)
class Rejected:
    """The answer is no class: the labeller does not know, or names something else; ``candidates`` come near."""

    reason: Literal["unknown", "not_a_class"]
    candidates: tuple[int, ...] = ()


Verdict = Matched | Ambiguous | Rejected


class LabelMatcher:
    """Matches answers to ``classes``; ``threshold`` is the least similarity of a close spelling, 0 to 100."""

    def __init__(self, classes: Sequence[str], *, threshold: float = DEFAULT_THRESHOLD) -> None:
        self.classes = tuple(classes)
        self._threshold = threshold
        self._exact: defaultdict[str, set[int]] = defaultdict(set)
        self._synonyms: defaultdict[str, set[int]] = defaultdict(set)
        self._plurals: defaultdict[str, set[int]] = defaultdict(set)
        for index, (name, given) in enumerate(zip(self.classes, as_given(self.classes), strict=True)):
            for full in (name, given):
                self._exact[full.strip()].add(index)
            for synonym in (name, given, *_SEPARATORS.split(given)):
                if key := normalise(synonym):
                    self._synonyms[key].add(index)
        for key, indices in self._synonyms.items():
            for plural in _plurals(key) - OF_THEIR_OWN:
                self._plurals[plural] |= indices
        self._spellings = self._plurals | self._synonyms
        self._sorted: defaultdict[str, set[int]] = defaultdict(set)
        for key, indices in self._spellings.items():
            self._sorted[_sorted_words(key)] |= indices

    def match(self, answer: str | None) -> Verdict:
        """The class that ``answer`` means, the classes that it could mean, or why it means none."""
        text = (answer or "").strip()
        for verbatim in (text, text.strip(" .")):
            if verbatim in self._exact:
                return _one_of(self._exact[verbatim], "exact")
        key = normalise(text)
        if found := self._named(key):
            return _one_of(found, "synonym")
        if key in _UNKNOWN or _NEGATION.search(key):
            return Rejected("unknown", self._candidates(key))
        if named := self._named_parts(text):
            return _one_of(named, "synonym")
        close = self._close(key)
        return _one_of(close, "fuzzy") if close else Rejected("not_a_class", self._candidates(key))

    def _named(self, key: str) -> set[int]:
        """Classes that have this synonym; without any, those whose synonym differs from it in number only."""
        if key in self._synonyms:
            return self._synonyms[key]
        # "Wine glasses" are wine glasses, but no "dark glass" is worn.
        whole = [plural for plural in _plurals(key) if plural.split()[-1] not in OF_THEIR_OWN]
        return self._plurals.get(key, set()).union(*(self._synonyms.get(plural, ()) for plural in whole))

    def _named_parts(self, text: str) -> list[int]:
        """Classes that the parts of "tabby cat, tabby" or "cat or dog" name; none unless every part names one."""
        parts = [key for part in _SEPARATORS.split(text.casefold()) if (key := normalise(part))]
        named = [self._named(part) for part in parts]
        if len(parts) < 2 or not all(named):
            return []
        return sorted(set.intersection(*named) or set.union(*named))

    def _close(self, key: str) -> list[int]:
        # Shorter words are one letter away from too many others ("eagle" from "beagle", "carton" from "cartoon").
        found = process.extract(
            _sorted_words(key),
            self._sorted.keys(),
            scorer=OSA.normalized_similarity,
            score_cutoff=self._threshold / 100,
            limit=None,
        )
        # What differs in number only was matched, or is another thing.
        others = {_sorted_words(plural) for plural in _plurals(key)}
        return _classes(
            self._sorted, (name for name, _, _ in found if name not in others and key not in _plurals(name))
        )

    def _candidates(self, key: str) -> tuple[int, ...]:
        if not key:
            return ()
        found = process.extract(
            key,
            self._spellings.keys(),
            scorer=fuzz.token_set_ratio,
            score_cutoff=_CANDIDATE_SCORE,
            limit=2 * _MAX_CANDIDATES,
        )
        return tuple(_classes(self._spellings, (name for name, _, _ in found))[:_MAX_CANDIDATES])


def normalise(text: str) -> str:
    """``text`` as lower-case words without lead-in ("This is a"), articles and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c if c.isalnum() else " " for c in plain if not unicodedata.combining(c))
    plain = _LEAD_IN.sub("", " ".join(plain.split())).strip()
    return _ARTICLES.sub("", plain)


def _plurals(key: str) -> frozenset[str]:
    """The spellings of a key whose last word is in the plural."""
    if not key:
        return frozenset()
    *before, last = key.split()
    return frozenset(" ".join([*before, plural]) for plural in plurals(last))


def _sorted_words(key: str) -> str:
    return " ".join(sorted(key.split()))


def _classes(spellings: Mapping[str, set[int]], names: Iterable[str]) -> list[int]:
    return list(dict.fromkeys(index for name in names for index in sorted(spellings[name])))


def _one_of(found: Iterable[int], how: Literal["exact", "synonym", "fuzzy"]) -> Matched | Ambiguous:
    indices = tuple(found) if isinstance(found, list) else tuple(sorted(found))
    return Matched(indices[0], how) if len(indices) == 1 else Ambiguous(indices)
