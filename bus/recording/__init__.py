"""Runs as files: events and the objects that they need, recorded whole, read back verified.

Recordings of older formats are brought up to today's when they are read.
"""
