"""Runs the aggregator: ``python -m agents.aggregator``."""

from agents.aggregator.service import serve
from agents.runtime.process import main

if __name__ == "__main__":
    main("aggregator", serve)
