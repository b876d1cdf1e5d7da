"""Foreign input: targets for every parser of it, seeds, mutations, and the command that runs a million inputs."""
