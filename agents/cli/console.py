"""Where commands say things: answers on standard output, all else on standard error."""

from rich.console import Console

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
