"""Which kind of client an engine's name stands for; the names travel in ``update.submitted`` and ``hello``.

A name is a library, maybe with its version, and words about it: ``onnxruntime-training/1.19.2 native, 1 thread``. The
words may say the kind; of names that do not, the library does.
"""

from __future__ import annotations

import re
from typing import Literal

EngineKind = Literal["browser", "native", "other"]
KINDS: tuple[EngineKind, ...] = ("browser", "native", "other")
LIBRARIES: dict[str, EngineKind] = {"onnxruntime-web": "browser", "onnxruntime-training": "native"}
"""The kind of each library whose engines' names need not say it."""
_SEPARATORS = re.compile(r"[\s/,]+")


def kind_of(engine: str) -> EngineKind:
    """The kind of client that trains with the engine of this name."""
    library, *words = _SEPARATORS.split(engine)
    said = next((kind for kind in KINDS if kind in (library, *words)), None)
    return said or LIBRARIES.get(library, "other")
