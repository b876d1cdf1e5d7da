"""The agents: thin async shells over the pure cores in ``agents.core``."""
