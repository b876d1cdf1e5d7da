"""Runs the evaluator: ``python -m agents.evaluator``."""

from agents.evaluator.service import serve
from agents.runtime.process import main

if __name__ == "__main__":
    main("evaluator", serve)
