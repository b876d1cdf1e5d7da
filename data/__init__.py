"""Pictures and their labels: the shipped sample, preparing one's own, duplicates, and the partition into users."""
