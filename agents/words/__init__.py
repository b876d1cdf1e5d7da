"""The words of federated learning on the bus: its events, and what a run is told to do."""
