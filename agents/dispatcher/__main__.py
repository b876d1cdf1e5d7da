"""Runs the dispatcher: ``python -m agents.dispatcher``."""

from agents.dispatcher.service import serve
from agents.runtime.process import main

if __name__ == "__main__":
    main("dispatcher", serve)
