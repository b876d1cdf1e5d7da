"""How English nouns are written in the plural, and which words are no plural although they look like one."""

from __future__ import annotations

_IRREGULAR = {"man": "men", "mouse": "mice", "goose": "geese", "tooth": "teeth", "foot": "feet", "child": "children"}
_TO_VES = ("wolf", "elf", "calf", "half", "leaf", "loaf", "knife", "wife", "life", "scarf", "dwarf", "hoof", "thief")
_WHOLE = {"ox": "oxen", "axis": "axes"}
_VOWELS = "aeiou"
OF_THEIR_OWN = frozenset(
    (
        *("arms", "boxers", "brains", "briefs", "customs", "eyeglasses", "glasses", "goods", "greens", "grounds"),
        *("looks", "manners", "means", "news", "premises", "savings", "shorts", "spectacles", "spirits", "tights"),
        *("trunks", "wits", "works"),
    )
)
"""What means something else than more of the same: glasses are worn, a glass is drunk from."""


def plurals(word: str) -> frozenset[str]:
    """The spellings that the plural of a lower-case noun may have."""
    found = {_WHOLE[word]} if word in _WHOLE else set()
    if word.endswith(("s", "x", "z", "ch", "sh")):
        found.add(f"{word}es")
    elif word.endswith("y") and word[-2:-1] not in _VOWELS:
        found.add(f"{word[:-1]}ies")
    else:
        found.add(f"{word}s")
    if word.endswith("o"):
        found.add(f"{word}es")
    if word.endswith("us") and len(word) > 4:
        found.add(f"{word[:-2]}i")
    if word.endswith(_TO_VES):
        found.add(f"{word.removesuffix('e')[:-1]}ves")
    found |= {word.removesuffix(one) + many for one, many in _IRREGULAR.items() if word.endswith(one)}
    return frozenset(found)
