"""Starts the labeller agent: ``python -m agents.labeller``."""

from agents.labeller.service import serve
from agents.runtime.process import main

if __name__ == "__main__":
    main("labeller", serve)
