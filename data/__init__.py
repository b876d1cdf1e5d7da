"""Datasets of fedbus: the folder format, partitions, shards and the shipped sample."""
