"""Runs as files: recorded from a bus, read back verified, brought up from older formats."""
