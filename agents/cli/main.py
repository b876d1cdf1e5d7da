"""The ``fedbus`` command: federated learning as events on NATS, training in the browser."""

from __future__ import annotations

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


class SettingsError(FedbusError):
    """An environment variable has a value that it cannot have."""

    code = "settings_invalid"


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
        said = _wrong_setting(error)
        if said is None:
            raise
        hint = "an environment variable has a value that it cannot have; see docs/operations.md"
        _say(SettingsError(said, hint=hint))
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            # Nobody's typing error: whoever looks for the cause needs all of it.
            raise
        _say(FileProblemError(f"{error.filename}: {error.strerror}", hint="check its folder, its rights and the disk"))
        sys.exit(1)


def _wrong_setting(error: ValueError) -> str | None:
    """The environment variable with a wrong value, and what is wrong with it; nothing for any other error."""
    # Here, because most commands end well, and some without pydantic.
    from pydantic import ValidationError
    from pydantic_settings import BaseSettings
    from pydantic_settings import SettingsError as UnparsedError

    from bus.words.problems import what_is_wrong

    prefixes = {one.__name__: str(one.model_config.get("env_prefix", "")) for one in BaseSettings.__subclasses__()}
    if isinstance(error, ValidationError) and error.title in prefixes:
        said = what_is_wrong(error)
        field, _, what = said.partition(": ")
        return (
            f"{field}: {what.removeprefix(field).strip()}"
            if field.isupper()
            else f"{prefixes[error.title]}{field.upper()}: {what}"
        )
    if isinstance(error, UnparsedError):
        field = str(error).split('"')[1]
        owner = next(one for one in BaseSettings.__subclasses__() if field in one.model_fields)
        return f'{prefixes[owner.__name__]}{field.upper()}: it is no JSON list; write ["one", "two"]'
    return None


def _say(error: FedbusError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    errors.print(f"fedbus: {error.message}{hint} [{error.code}]", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
