"""The object store: immutable bytes under their SHA-256, handed out whole and verified or not at all.

Large things lie here, and events refer to them. What no event leads to any more is collected by age.
"""
