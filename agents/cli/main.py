"""The ``fedbus`` command: federated learning as events on NATS, training in the browser."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from agents.cli.console import errors
from agents.cli.lazy import lazy
from bus.errors import FedbusError

COMMANDS = {
    "demo": "agents.cli.demo:demo",
    "up": "agents.cli.serve:up",
    "broker": "agents.cli.serve:broker",
    "agent": "agents.cli.here:agent",
    "client": "agents.cli.clients:client",
    "env": "agents.cli.here:env",
    "page": "agents.cli.here:page",
    "nats-config": "agents.cli.nats_config:nats_config",
    "clients": "agents.cli.clients:list_clients",
    "run": "agents.cli.main:run_app",
    "round": "agents.cli.runs:round_app",
    "watch": "agents.cli.inspect_run:watch",
    "record": "agents.cli.inspect_run:record_command",
    "replay": "agents.cli.inspect_run:replay",
    "report": "agents.cli.inspect_run:report",
    "evaluate": "agents.cli.evaluate:evaluate",
    "model": "agents.cli.model:app",
    "verify": "agents.cli.operate:verify",
    "dlq": "agents.cli.dlq:app",
    "gc": "agents.cli.operate:gc",
    "token": "agents.cli.token:app",
    "artifacts": "agents.cli.artifacts:app",
    "data": "agents.cli.data:app",
    "doctor": "agents.cli.doctor:doctor",
}
RUN_COMMANDS = {
    "start": "agents.cli.runs:run_start",
    "list": "agents.cli.run_list:run_list",
    "show": "agents.cli.run_list:run_show",
    "cancel": "agents.cli.run_list:run_cancel",
}


class WrongUsageError(FedbusError):
    """A command does not exist, or not with these words."""

    code = "usage"


class FileProblemError(FedbusError):
    """The operating system does not let a command read or write a file."""

    code = "file_unusable"


run_app = typer.Typer(cls=lazy(RUN_COMMANDS), no_args_is_help=True, help="Start runs, and look after them.")
app = typer.Typer(
    cls=lazy(COMMANDS),
    name="fedbus",
    help="Federated learning as events on NATS, with training in the browser.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fedbus {version('fedbus')}")
        raise typer.Exit


@app.callback()
def _fedbus(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Federated learning as events on NATS, with training in the browser."""


def main() -> None:
    """Runs the command line; a wrong argument, or an error that fedbus raises on purpose, becomes one line.

    Exits with 2 for a wrong argument and 1 for any other error.
    """
    try:
        _warn_of_misspelled()
        sys.exit(app(prog_name="fedbus", standalone_mode=False))
    except typer.Abort:
        sys.exit(130)
    except typer.TyperException as error:
        message = getattr(error, "format_message", lambda: "")()
        context = getattr(error, "ctx", None)
        if message:
            command = context.command_path if context else "fedbus"
            _say(WrongUsageError(message.removesuffix("."), hint=f"see {command} --help"))
        sys.exit(2)
    except FedbusError as error:
        _say(error)
        sys.exit(1)
    except ValueError as error:
        # Here, because most commands end well, and some without pydantic.
        from agents.runtime.settings import wrong_setting

        said = wrong_setting(error)
        if said is None:
            raise
        _say(said)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            # Nobody's typing error: whoever looks for the cause needs all of it.
            raise
        _say(FileProblemError(f"{error.filename}: {error.strerror}", hint="check its folder, its rights and the disk"))
        sys.exit(1)


def _warn_of_misspelled() -> None:
    # A shell that completes a word wants nothing else; and most have set nothing, and need not wait for the settings.
    if "_FEDBUS_COMPLETE" in os.environ or not any(name.upper().startswith("FEDBUS_") for name in os.environ):
        return
    from agents.runtime.settings import warn_of_misspelled

    warn_of_misspelled(_warn)


def _warn(line: str) -> None:
    errors.print(f"fedbus: {line}", style="yellow", soft_wrap=True, markup=False)


def _say(error: FedbusError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    errors.print(f"fedbus: {error.message}{hint} [{error.code}]", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
