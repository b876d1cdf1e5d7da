"""How the accepted updates of a round become its model: one file a strategy, found by its ``NAME``."""
