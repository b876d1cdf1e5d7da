"""The object store: immutable bytes under their SHA-256, and the collection of what nothing refers to."""
