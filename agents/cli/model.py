"""``fedbus model export``: takes a trained model out, in the forms that others use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from agents.audit.model_export import DEFAULT_FORMS, Form, check_folder, fetched_model, write_model
from agents.cli.console import console, errors
from agents.cli.finding import CONNECT_S, find_run
from agents.runtime.connection import use_running_fedbus
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from bus.client import Bus

app = typer.Typer(no_args_is_help=True, help="Models that runs trained.")


@app.callback()
def _model() -> None:
    """Models that runs trained."""


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="The run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")],
    number: Annotated[int | None, typer.Option("--round", min=0, help="Of this round; default: the newest.")] = None,
    forms: Annotated[
        list[Form] | None, typer.Option("--format", help="Can be given again; default: onnx, safetensors and raw.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Folder of the base model, where the artifacts lack its config.")
    ] = None,
) -> None:
    """Write a trained model: as ONNX, in Hugging Face's layout (LoRA merged, or as an adapter), and its parameters.

    An earlier export in the folder is replaced; a folder with anything else is refused.
    """
    chosen = tuple(forms or DEFAULT_FORMS)
    if {Form.SAFETENSORS, Form.ADAPTER} <= set(chosen):
        raise typer.BadParameter("--format safetensors and adapter need a folder each: from_pretrained loads one")
    check_folder(out)
    before = set(out.glob("*"))
    use_running_fedbus()
    for path in asyncio.run(_export(run, number, out, chosen, (base or DEFAULT_ARTIFACTS,))):
        console.print(f"{path}{' (replaced)' if path in before else ''}", soft_wrap=True)


async def _export(
    run: str, number: int | None, out: Path, forms: tuple[Form, ...], bases: tuple[Path, ...]
) -> list[Path]:
    async with (
        Bus.connect(name="model", wait_s=CONNECT_S) as bus,
        fetched_model(bus, await find_run(bus, run), number) as model,
    ):
        if number is None and model.round == 0:
            errors.print(f"{run} has made no model yet: this is its untrained base", soft_wrap=True, markup=False)
        return await asyncio.to_thread(write_model, model, out, forms, bases=bases)
