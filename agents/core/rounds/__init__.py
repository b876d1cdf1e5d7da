"""The rules of runs and rounds: who takes part, what counts, when a round closes."""
