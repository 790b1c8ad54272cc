"""The program itself: its name, its help, how it ends."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mechrep.errors import MechrepError

_STOPPED = 130  # what shells say of a program that was interrupted


class _Group(TyperGroup):
    """Turns mechrep's own errors into one line, and an interruption into a hint."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MechrepError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            typer.echo("stopped; run the same command again to go on", err=True)
            raise typer.Exit(_STOPPED) from stop


app = typer.Typer(
    name="mechrep",
    cls=_Group,
    help="Why does this language model repeat itself, and what happens if that mechanism is switched off?",
    no_args_is_help=True,
    add_completion=False,
    # Coloured help and tracebacks would import rich, which takes longer than everything else here.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        from mechrep import __version__

        typer.echo(f"mechrep {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    # Models write any character; a terminal that cannot show one gets a replacement and not a crash.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
