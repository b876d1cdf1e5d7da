"""The evaluator: base and updated model compared on held-out images."""
