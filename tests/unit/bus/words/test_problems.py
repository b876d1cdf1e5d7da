"""What is wrong with foreign data is said in words, with its place, and without repeating it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from bus.words.problems import what_is_wrong


class Door(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int

    @field_validator("width")
    @classmethod
    def _even(cls, width: int) -> int:
        if width % 2:
            raise ValueError("doors are even")
        return width


class House(BaseModel):
    doors: list[Door]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is not JSON, or cut off"),
        ("[1]", "it is not an object with fields"),
        ('{"doors": [{}]}', "doors.0.width is missing"),
        ('{"doors": [{"width": 2, "colour": "secret"}]}', "doors.0.colour: there is no such field"),
        ('{"doors": [{"width": 3}]}', "doors.0.width: doors are even"),
    ],
)
def test_a_problem_is_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ValidationError) as problem:
        House.model_validate_json(text)
    assert what_is_wrong(problem.value) == said
