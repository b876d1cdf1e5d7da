"""``python -m agents.cli`` is the same as ``fedbus``."""

from agents.cli.main import main

if __name__ == "__main__":
    main()
