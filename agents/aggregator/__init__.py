"""The aggregator: counts a round's updates, closes it, and publishes the new model."""
