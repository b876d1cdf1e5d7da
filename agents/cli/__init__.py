"""The ``fedbus`` command."""
