"""Measurements of fedbus, as ratios against plain references."""
