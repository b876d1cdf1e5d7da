"""Labels a set of images with a model behind the OpenAI API, without a bus: what ``fedbus data labels run`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.core.labels.label_file import LabelFile, SetAside, match_answers
from agents.core.labels.sources import image_digest
from agents.labeller.asking import Images, check_limit, estimate_new, image_asker
from agents.labeller.cache import open_cache
from agents.labeller.costs import Estimate
from agents.labeller.prompt import Prompt
from agents.labeller.settings import LabellerSettings
from agents.words.run_config import LabellingSpec


def estimate_images(
    images: Images, classes: Sequence[str], spec: LabellingSpec, settings: LabellerSettings
) -> Estimate:
    """What asking about those of the images that are not in the cache will take; needs no key and sends nothing.

    Raises:
        CostLimitError: it may cost more than ``settings.max_cost``.
        LabellingError: the cache cannot be used.
    """
    prompt = Prompt(tuple(classes), spec.detail)
    with open_cache(settings.cache, model=spec.model, prompt=prompt.version) as cache:
        total = estimate_new(images, set(), cache, prompt, spec)
    check_limit(total, settings.max_cost, spec.model)
    return total


async def label_images(
    images: Mapping[str, NDArray[np.uint8]], classes: Sequence[str], spec: LabellingSpec, settings: LabellerSettings
) -> LabelFile:
    """The answers about images, by id, matched to the classes; refused and unreadable ones are set aside.

    Raises:
        LabellingError: no key, a refused account, or the limit of the cost.
        ApiUnavailableError: the API does not answer; what it answered is kept for the next time.
    """
    async with image_asker(classes, spec, settings) as asker:
        answers = dict(zip(images, await asker.answers(list(images.values())), strict=True))
    said = {id_: one.text for id_, one in answers.items() if not one.failure}
    file = match_answers(said, classes, threshold=settings.match_threshold)
    for id_, one in answers.items():
        if one.failure:
            file.rejected[id_] = SetAside(answer=None, reason=one.failure, candidates=[])
    file.images = {id_: image_digest(image) for id_, image in images.items()}
    return file
