"""The ``fedbus`` command: federated learning as events on NATS, training in the browser."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError

from agents.cli import clients, demo, doctor, inspect_run, nats_config, operate, run_list, runs, serve, token
from agents.cli.artifacts import app as artifacts_app
from agents.cli.data import app as data_app
from agents.cli.display import errors
from agents.cli.evaluate import evaluate
from agents.cli.labels import app as labels_app
from agents.cli.model import app as model_app
from bus.errors import FedbusError
from bus.words.problems import what_is_wrong


class WrongUsageError(FedbusError):
    """A command does not exist, or not with these words."""

    code = "usage"


class SettingsError(FedbusError):
    """An environment variable has a value that it cannot have."""

    code = "settings_invalid"


class FileProblemError(FedbusError):
    """The operating system does not let a command read or write a file."""

    code = "file_unusable"


app = typer.Typer(
    name="fedbus",
    help="Federated learning as events on NATS, with training in the browser.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedbus {version('fedbus')}")
        raise typer.Exit


@app.callback()
def _fedbus(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Federated learning as events on NATS, with training in the browser."""


app.command()(demo.demo)
app.command()(serve.up)
app.command()(serve.broker)
app.command()(serve.agent)
app.command()(clients.client)
app.command()(serve.env)
app.command()(serve.page)
app.command()(nats_config.nats_config)
app.command("clients")(clients.list_clients)
runs.run_app.command("list")(run_list.run_list)
runs.run_app.command("show")(run_list.run_show)
runs.run_app.command("cancel")(run_list.run_cancel)
app.add_typer(runs.run_app, name="run")
app.add_typer(runs.round_app, name="round")
app.command()(inspect_run.watch)
app.command("record")(inspect_run.record_command)
app.command()(inspect_run.replay)
app.command()(inspect_run.report)
app.command()(evaluate)
app.add_typer(model_app, name="model")
app.command()(operate.verify)
app.add_typer(operate.dlq_app, name="dlq")
app.command()(operate.gc)
app.add_typer(token.app, name="token")
app.add_typer(artifacts_app, name="artifacts")
data_app.add_typer(labels_app, name="labels")
app.add_typer(data_app, name="data")
app.command()(doctor.doctor)


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
    except ValidationError as error:
        if not error.title.endswith("Settings"):
            raise
        hint = "an environment variable has a value that it cannot have; see docs/operations.md"
        _say(SettingsError(f"{error.title}: {what_is_wrong(error)}", hint=hint))
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            # Nobody's typing error: whoever looks for the cause needs all of it.
            raise
        _say(FileProblemError(f"{error.filename}: {error.strerror}", hint="check its folder, its rights and the disk"))
        sys.exit(1)


def _say(error: FedbusError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    errors.print(f"fedbus: {error.message}{hint} [{error.code}]", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
