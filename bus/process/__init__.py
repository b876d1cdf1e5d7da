"""What a process on the bus needs of its machine: logs, files, named places to crash at."""
