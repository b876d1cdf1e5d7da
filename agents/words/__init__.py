"""The words of federated learning: its events, the config of a run, and the spec of a round's tasks.

Plain data with bounds, each declared once. Whoever imports this package can speak them on the bus.
"""
