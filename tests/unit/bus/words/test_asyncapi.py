import agents.words.events  # noqa: F401 - something to describe
from bus.words.asyncapi import document


def test_every_reference_leads_somewhere() -> None:
    whole = document("all")

    def check(value: object) -> int:
        if isinstance(value, list):
            return sum(check(item) for item in value)
        if not isinstance(value, dict):
            return 0
        target: object = whole
        if "$ref" in value:
            for step in value["$ref"].removeprefix("#/").split("/"):
                assert isinstance(target, dict)
                target = target[step]
        return ("$ref" in value) + sum(check(item) for item in value.values())

    assert check(whole) > 50
