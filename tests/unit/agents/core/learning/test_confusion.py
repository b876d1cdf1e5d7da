"""Confusion counts in JSON: in full for few classes, as ever; sparse for many; both are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from agents.audit.report.build import build_report
from agents.audit.report.write import write_report
from agents.core.learning.confusion import MOST_IN_FULL
from agents.core.learning.scores import ClassScores, EvaluationDetails
from agents.core.views.run import RunView
from agents.words.events import ModelEvaluated
from bus.recording.files import load_recording
from tests.conftest import SMALL_RUN
from tests.imagenet_names import imagenet_like_names
from tests.unit.agents.audit.report.runs import a_run


def scores(classes: int, images: int, seed: int = 0) -> ClassScores:
    """Those of a model that is often right."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, images)
    predicted = np.where(generator.random(images) < 0.8, true, generator.integers(0, classes, images))
    counts = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return ClassScores(per_class=(None,) * classes, confusion=tuple(map(tuple, counts.tolist())))


def details(classes: int, images: int) -> EvaluationDetails:
    names = tuple(f"class {index}" for index in range(classes))
    return EvaluationDetails(classes=names, base=scores(classes, images), updated=scores(classes, images, 1))


def in_full(content: EvaluationDetails) -> str:
    """As it was written before there was a sparse form."""
    return json.dumps(content.model_dump(), separators=(",", ":"))


@pytest.mark.parametrize("classes", [2, 3, 10, MOST_IN_FULL])
def test_few_classes_are_written_as_ever(classes: int):
    content = details(classes, 200)
    assert content.model_dump_json() == in_full(content)
    assert EvaluationDetails.model_validate_json(content.model_dump_json()) == content


@pytest.mark.parametrize("classes", [MOST_IN_FULL + 1, 1_000])
def test_many_classes_are_written_without_their_zeros_and_read_in_either_form(classes: int):
    content = details(classes, 2_000)
    written = content.model_dump_json()
    cells = json.loads(written)["base"]["confusion"]["cells"]
    assert sum(count for _, _, count in cells) == 2_000
    assert all(content.base.confusion[true][predicted] == count > 0 for true, predicted, count in cells)
    assert EvaluationDetails.model_validate_json(written) == content
    assert EvaluationDetails.model_validate_json(in_full(content)) == content
    assert EvaluationDetails.model_validate(json.loads(written)) == content


def test_the_details_of_a_recorded_run_are_the_same_bytes_when_written_again():
    recording = load_recording(SMALL_RUN)
    evaluated = [one.event.data for one in recording.events if isinstance(one.event.data, ModelEvaluated)]
    assert evaluated
    for one in evaluated:
        content = recording.objects[one.details.sha256]
        assert EvaluationDetails.model_validate_json(content).model_dump_json().encode() == content


@pytest.mark.parametrize(
    "cells",
    [
        *(
            {"classes": 2, "cells": [[0, 2, 1]]},
            {"classes": 2, "cells": [[-1, 0, 1]]},
            {"classes": 2, "cells": [[0, 1]]},
        ),
        *({"classes": 2, "cells": [[0, 1, "x"]]}, {"classes": 0, "cells": []}, {"classes": 10**9, "cells": []}),
        *({"classes": 2}, {"classes": 2, "cells": 3}, {"classes": 2, "cells": [3]}, "x"),
    ],
)
def test_other_cells_are_refused(cells: Any):
    with pytest.raises(ValidationError):
        ClassScores.model_validate({"per_class": [None, None], "confusion": cells})


def test_the_report_of_a_thousand_classes_is_small(tmp_path: Path):
    many = EvaluationDetails(
        classes=imagenet_like_names(), base=scores(1_000, 20_000), updated=scores(1_000, 20_000, 1)
    )
    stored = EvaluationDetails.model_validate_json(many.model_dump_json())
    report = build_report(RunView.of(a_run()[0].events), stored)
    path, _ = write_report(report, tmp_path)
    assert report.confusion is not None
    assert report.confusion.final == many.updated.confusion
    assert path.stat().st_size < 2_000_000
    assert len(json.loads(path.read_text())["per_class"]) == 1_000
