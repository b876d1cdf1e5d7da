"""The command ``fedbus``: starts agents, runs and rounds, watches them, and looks at what they left."""
