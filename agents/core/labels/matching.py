"""Matches the text that a labeller answers to one of a model's classes, and never guesses between two.

A class name may list synonyms ("tabby, tabby cat"). An answer is tried in this order: the class name itself; a
synonym, after normalising case, punctuation, articles and plurals; a close spelling (``rapidfuzz``) of a synonym. As
soon as a step finds two classes the answer is ambiguous. Part of a name ("boot" for "ankle boot", "sea lion" for
"lion") is never a match: such classes are only offered as candidates for a person to choose from.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz import fuzz, process

DEFAULT_THRESHOLD = 88.0
"""Least similarity of a close spelling, 0 to 100: one letter off in a word of nine."""
_FUZZY_LETTERS = 5
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
        for index, name in enumerate(self.classes):
            self._exact[name.strip()].add(index)
            for synonym in (name, *_SEPARATORS.split(name)):
                if key := normalise(synonym):
                    self._synonyms[key].add(index)

    def match(self, answer: str | None) -> Verdict:
        """The class that ``answer`` means, the classes that it could mean, or why it means none."""
        text = (answer or "").strip()
        if text in self._exact:
            return _one_of(self._exact[text], "exact")
        key = normalise(text)
        if key in self._synonyms:
            return _one_of(self._synonyms[key], "synonym")
        if key in _UNKNOWN or _NEGATION.search(key):
            return Rejected("unknown", self._candidates(key))
        if named := self._named_parts(text):
            return _one_of(named, "synonym")
        close = self._close(key)
        return _one_of(close, "fuzzy") if close else Rejected("not_a_class", self._candidates(key))

    def _named_parts(self, text: str) -> list[int]:
        """Classes that the parts of "tabby cat, tabby" or "cat or dog" name; none unless every part names one."""
        parts = [key for part in _SEPARATORS.split(text.casefold()) if (key := normalise(part))]
        if len(parts) < 2 or not all(part in self._synonyms for part in parts):
            return []
        common = set.intersection(*(self._synonyms[part] for part in parts))
        return sorted(common or set.union(*(self._synonyms[part] for part in parts)))

    def _close(self, key: str) -> list[int]:
        # A short word is one letter away from too many others ("tram" from "ram").
        if len(key) < _FUZZY_LETTERS:
            return []
        found = process.extract(
            key, self._synonyms.keys(), scorer=fuzz.token_sort_ratio, score_cutoff=self._threshold, limit=None
        )
        return self._classes_of(name for name, _, _ in found)

    def _candidates(self, key: str) -> tuple[int, ...]:
        if not key:
            return ()
        found = process.extract(
            key,
            self._synonyms.keys(),
            scorer=fuzz.token_set_ratio,
            score_cutoff=_CANDIDATE_SCORE,
            limit=_MAX_CANDIDATES,
        )
        return tuple(self._classes_of(name for name, _, _ in found)[:_MAX_CANDIDATES])

    def _classes_of(self, synonyms: Iterable[str]) -> list[int]:
        return list(dict.fromkeys(index for name in synonyms for index in sorted(self._synonyms[name])))


def normalise(text: str) -> str:
    """``text`` as lower-case words, without lead-in ("This is a"), articles, accents, and plural of the last word."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c if c.isalnum() else " " for c in plain if not unicodedata.combining(c))
    plain = _LEAD_IN.sub("", " ".join(plain.split())).strip()
    words = _ARTICLES.sub("", plain).split()
    return " ".join([*words[:-1], _singular(words[-1])]) if words else ""


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _one_of(found: Iterable[int], how: Literal["exact", "synonym", "fuzzy"]) -> Matched | Ambiguous:
    indices = tuple(found) if isinstance(found, list) else tuple(sorted(found))
    return Matched(indices[0], how) if len(indices) == 1 else Ambiguous(indices)
