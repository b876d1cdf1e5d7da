"""How something that is said on the bus declares itself: its type, its subject, who may say it, whether it is kept.

A class that declares ``TYPE`` is entered in the registry when it is made; subjects, permissions, the AsyncAPI
description, collection of objects and recording read everything there. What its objects are is said by marks on its
fields (``bus.words.references``). The words of a domain exist once its module has been imported.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

from bus.errors import FedbusError, MalformedEventError, NoWordsError
from bus.words.values import Frozen, Name

OPERATOR = "cli"
"""The role that makes the streams and gives dead letters back."""
GATEWAY = "gateway"
"""The role that strangers talk to: it reads the join tokens."""
COLLECTOR = "gc"
"""The role that deletes what nothing leads to any more, and says nothing else."""
EVERY_ROLE = ("*",)


class UnknownRoleError(FedbusError):
    """An event is declared to be said by a role that nobody declared."""

    code = "role_unknown"


Upgrades = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]
"""For each format of recordings that wrote an event in a way that is read no more: a pure function from the JSON of its
data there to that of the next format, which raises ``ValueError`` with the reason where there is no way."""
_NOUN_VERB = re.compile(r"[a-z_]+\.[a-z_]+")
_NOUN = re.compile(r"(?!(?:ev|dlq|token|deleted)$)[a-z_]+")
"""Any but the first tokens of the streams."""
_NAME = get_args(Name)[1]


@dataclass(frozen=True)
class Token:
    """Marks a field, a ``Name`` or a whole number, as a token of the subject, where they stand in the fields' order.

    ``is_speaker``: it is the role of whoever says this, and the broker lets nobody say it in another's name.
    """

    description: str
    is_speaker: bool = False


class Word(Frozen):
    """Base of all that is said on the bus.

    ``TYPE`` names it, and a class without one is a base of others; ``SAID_BY`` are the roles that may say it, and
    ``TOKENS`` the marks of the fields that its subject is made of, by name and in order.
    """

    TYPE: ClassVar[str]
    SAID_BY: ClassVar[tuple[str, ...]]
    TOKENS: ClassVar[Mapping[str, Token]] = {}
    FORM: ClassVar[re.Pattern[str]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.TOKENS = {
            name: mark for name, field in cls.model_fields.items() for mark in field.metadata if isinstance(mark, Token)
        }
        for name in cls.TOKENS:
            if cls.model_fields[name].annotation is not int and _NAME not in cls.model_fields[name].metadata:
                raise TypeError(f"{cls.__qualname__}.{name} cannot be a token: it is neither a Name nor a whole number")
        if "TYPE" not in vars(cls):
            return
        if cls.TYPE in _words:
            raise TypeError(f"{cls.__qualname__} and {_words[cls.TYPE].__qualname__} are both declared as {cls.TYPE}")
        if not cls.FORM.fullmatch(cls.TYPE) or not getattr(cls, "SAID_BY", ()):
            raise TypeError(f"{cls.__qualname__} needs a TYPE like {cls.FORM.pattern} and somebody in SAID_BY")
        if unknown := [role for role in cls.SAID_BY if role not in _roles and cls.SAID_BY != EVERY_ROLE]:
            wrong, known = ", ".join(unknown), ", ".join(_roles)
            raise UnknownRoleError(
                f"{cls.__qualname__}.SAID_BY names {wrong}, which is no role; there are {known}",
                hint="correct it, or declare a new one before: new_role(NAME)",
            )
        _words[cls.TYPE] = cls


class Payload(Word):
    """Base of the durable events: each is written once, on a subject of its own in the stream.

    ``TYPE`` is the event's noun.verb, ``run`` the run that it belongs to, ``UPGRADES`` how old recordings are read.
    """

    FORM = _NOUN_VERB
    UPGRADES: ClassVar[Upgrades] = {}
    run: Annotated[Name, Token("name of the run")]


class Live(Word):
    """Base of what is worth something now only: it goes to whoever listens, and nothing keeps it.

    ``TYPE`` is the first token of its subject.
    """

    FORM = _NOUN


_words: dict[str, type[Word]] = {}
_roles = dict.fromkeys((OPERATOR, GATEWAY, COLLECTOR))


def new_role(name: str) -> str:
    """Declares a role, that is a login at the broker, so that ``SAID_BY`` may name it."""
    _roles[name] = None
    return name


def payloads() -> list[type[Payload]]:
    """Every durable event that is declared, in the order of declaration."""
    return [word for word in _words.values() if issubclass(word, Payload)]


def live_words() -> list[type[Live]]:
    """Everything live that is declared, in the order of declaration."""
    return [word for word in _words.values() if issubclass(word, Live)]


def payload_of(type_: str) -> type[Payload]:
    """The class of the durable event ``type_``, its noun.verb.

    Raises:
        NoWordsError: nothing is declared at all, so this is no judgement about the event.
        MalformedEventError: this version does not know the type.
    """
    _need_words()
    found = _words.get(type_)
    if found is None or not issubclass(found, Payload):
        raise MalformedEventError(f"unknown event type {type_!r}")
    return found


def roles() -> tuple[str, ...]:
    """Every role that may log in, the operator first and the collector last.

    Raises:
        NoWordsError: nothing is declared.
    """
    _need_words()
    speakers = (role for word in _words.values() if word.SAID_BY != EVERY_ROLE for role in word.SAID_BY)
    return (*dict.fromkeys([OPERATOR, *speakers]), COLLECTOR)


def words_of(role: str) -> list[type[Word]]:
    """All that ``role`` may say."""
    return [word for word in _words.values() if word.SAID_BY == EVERY_ROLE or role in word.SAID_BY]


@contextlib.contextmanager
def declared_for_a_while() -> Iterator[None]:
    """What is declared inside is forgotten at the end, for tests that declare words of their own."""
    kept = [(known, dict(known)) for known in (_words, _roles)]
    try:
        yield
    finally:
        for known, before in kept:
            known.clear()
            known.update(before)  # type: ignore[arg-type]


def _need_words() -> None:
    if not _words:
        raise NoWordsError(
            "no event is declared in this process",
            hint="import the module that declares them before anything is read",
        )
