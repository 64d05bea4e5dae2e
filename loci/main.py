"""The command line: the list of commands, and the only place where a run ends in an exit code."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from loci.commands import backup as saving
from loci.commands import compare as comparing
from loci.commands import connections as connecting
from loci.commands import demo as demonstration
from loci.commands import evaluate as evaluating
from loci.commands import export as exporting
from loci.commands import geotag as geotagging
from loci.commands import index as indexing
from loci.commands import info as inspecting
from loci.commands import plan as planning
from loci.commands import query as querying
from loci.commands import serve as serving
from loci.commands import train as training
from loci.commands.keys import keys
from loci.commands.weights import weights
from loci.console import note, say
from loci.exit_codes import WRONG_USAGE, Interrupted, explain
from loci.help_format import Command


class _Commands(TyperGroup):
    """All commands. Every failure ends here, as one sentence on stderr and an exit code."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        extra |= {"prog_name": "loci", "standalone_mode": False}
        try:
            code = super().main(arguments, *more, **extra)
        except typer.TyperException as error:
            note(f"loci: {_usage_sentence(error)}")
            code = WRONG_USAGE
        except Exception as error:
            failure = explain(error)
            if failure is None:  # a bug: a report needs the traceback
                raise
            if failure.sentence is not None:
                note(f"loci: {failure.sentence}")
            code = failure.exit_code
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # typer would exit with 130 and print nothing
            raise Interrupted("interrupted") from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find where photos were taken, by finding the same place in photos that you have.",
)

COMMANDS = (
    demonstration.demo,
    indexing.index,
    querying.query,
    comparing.compare,
    serving.serve,
    evaluating.evaluate,
    geotagging.geotag,
    training.train,
    planning.plan,
    inspecting.info,
    inspecting.check,
    indexing.remove,
    exporting.export,
    saving.backup,
    saving.restore,
    connecting.connections,
)
for _command in COMMANDS:
    app.command(_command.__name__, cls=Command)(_command)
app.add_typer(keys)
app.add_typer(weights)


def main() -> None:
    """Run the command line with the arguments of the process; always raises SystemExit."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from loci import __version__

        say(f"loci {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _usage_sentence(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "loci"
    message = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    return f"{message}; see {command} --help"
