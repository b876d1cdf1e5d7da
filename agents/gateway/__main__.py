"""Runs the gateway: ``python -m agents.gateway``, settings from ``FEDBUS_GATEWAY_*``."""

from agents.gateway.service import serve
from agents.runtime.process import main

main("gateway", serve)
