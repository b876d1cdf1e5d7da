"""The ``fedbus`` command: federated learning as events on NATS, training in the browser."""

from __future__ import annotations

import sys

import typer

from agents.cli import demo, doctor, inspect_run, runs, serve
from agents.cli.display import errors
from bus.errors import FedbusError

app = typer.Typer(
    name="fedbus",
    help="Federated learning as events on NATS, with training in the browser.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(serve.up)
app.command()(serve.broker)
app.command()(serve.agent)
app.command()(serve.client)
app.add_typer(runs.run_app, name="run")
app.add_typer(runs.round_app, name="round")
app.command()(inspect_run.watch)
app.command("record")(inspect_run.record_command)
app.command()(inspect_run.replay)
app.command()(inspect_run.report)
app.command()(doctor.doctor)


def main() -> None:
    """Runs the command line; an error that fedbus raises on purpose becomes one line and exit code 1."""
    try:
        app()
    except FedbusError as error:
        hint = f" ({error.hint})" if error.hint else ""
        errors.print(f"fedbus: {error.message}{hint} \\[{error.code}]", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
