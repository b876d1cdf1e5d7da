"""The aggregator: counts a round's updates, closes it at its quorum or deadline, and publishes the new model."""
