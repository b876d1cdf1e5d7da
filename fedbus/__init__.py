"""The public door: what a program of your own may import and rely on. All else may change from version to version.

``replay`` runs every agent's rules over a recorded run again, without broker or browser::

    import fedbus

    assert fedbus.replay("runs/shop/recording.jsonl.gz").differences == []
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from agents.audit.replay import Difference, Replay, replay_run
from bus.errors import FedbusError
from bus.recording.files import Recording, load_recording

__all__ = ["Difference", "FedbusError", "Recording", "Replay", "__version__", "load_recording", "replay"]
__version__ = version("fedbus")


def replay(recording: Recording | str | os.PathLike[str]) -> Replay:
    """What every agent decides over a recorded run, or the file of one, and where that differs from what it recorded.

    Scores are checked against the recorded predictions; no model runs.

    Raises:
        FedbusError: the file is missing or damaged, or lacks what a replay needs.
    """
    opened = recording if isinstance(recording, Recording) else load_recording(Path(recording))
    return replay_run(opened.events, opened.objects)
