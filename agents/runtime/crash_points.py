"""The places at which a test may have an agent or a client killed (``bus.process.crash_points``), by process."""

from __future__ import annotations

from bus.errors import FedbusError
from bus.process.crash_points import unknown_points

LABELLER = ("labeller.received", "labeller.decided", "labeller.published")
DISPATCHER = (
    "dispatcher.planning",
    "dispatcher.spec_put",
    "dispatcher.round.planned",
    "dispatcher.task.assigned",
    "dispatcher.round.started",
    "dispatcher.run.finished",
)
AGGREGATOR = (
    "aggregator.received",
    "aggregator.added",
    "aggregator.closing",
    "aggregator.round.closed",
    "aggregator.model_put",
    "aggregator.state_put",
    "aggregator.model.published",
)
EVALUATOR = ("evaluator.received", "evaluator.evaluated", "evaluator.details_put", "evaluator.published")
GATEWAY = (
    "gateway.delivered",
    "gateway.leased",
    "gateway.upload_begun",
    "gateway.chunk_written",
    "gateway.committed",
    "gateway.checked",
    "gateway.object_put",
    "gateway.submitted",
)
CLIENT = ("client.assigned", "client.trained", "client.upload_begun", "client.chunk_sent", "client.committed")
RARE = ("aggregator.failing", "dispatcher.runs.settled")
"""Reached by no single run that goes well: a strategy failed or an object is lost, and nothing has said so yet; many
runs have ended, and it has just been said which are open."""
POINTS = (*LABELLER, *DISPATCHER, *AGGREGATOR, *EVALUATOR, *GATEWAY, *CLIENT)


def check_crash_points() -> None:
    """Every process calls it at its start: a test that arms a point that does not exist would show nothing.

    Raises:
        FedbusError: ``FEDBUS_CRASH_AT`` names none of these, nor one of the bus's own.
    """
    known = (*POINTS, *RARE)
    if unknown := unknown_points(known):
        raise FedbusError(f"FEDBUS_CRASH_AT names {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
