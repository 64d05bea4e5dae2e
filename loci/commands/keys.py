"""`loci keys`: the API keys of a service."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loci.console import note, say, say_json, table
from loci.help_format import Command, Group
from loci.options import JsonFlag

if TYPE_CHECKING:
    from service.security.keys import KeyFile


keys = typer.Typer(
    name="keys", cls=Group, rich_markup_mode=None, help="Create, list or remove API keys of a service."
)

COLUMNS = (("name", "left"), ("for", "left"), ("created", "left"))

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name for the key.")]
Index = Annotated[
    Path | None,
    typer.Option(
        "--index",
        metavar="INDEX",
        envvar="LOCI_INDEX",
        show_envvar=False,
        help="The index that is served (LOCI_INDEX).",
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        envvar="LOCI_KEYS",
        show_envvar=False,
        help="The file of keys (LOCI_KEYS). [default: INDEX/keys.json]",
    ),
]


@keys.command("create", cls=Command)
def create(
    name: Name,
    index: Index = None,
    file: File = None,
    write: Annotated[bool, typer.Option("--write", help="Let the key also add and remove photos.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Create a key and print it.

    The key is shown only once: the file keeps its hash. Send it with each request, in the header
    'Authorization: Bearer KEY'. A running service accepts it at once.
    """
    from service.security.keys import Role

    role = Role.WRITE if write else Role.READ
    key = _open(index, file).create(name, role)
    if as_json:
        say_json({"name": name, "role": role.value, "key": key})
        return
    note(f"Key {name}, for {'reading and writing' if write else 'reading'}. It is shown only once:")
    say(key)


@keys.command("list", cls=Command)
def list_keys(index: Index = None, file: File = None, as_json: JsonFlag = False) -> None:
    """List the keys by name."""
    found = _open(index, file).read()
    if as_json:
        say_json([asdict(key) for key in found])
        return
    if not found:
        note("there are no keys yet")
        return
    table(COLUMNS, [(key.name, _doing(key.role), key.created_at) for key in found])


@keys.command("remove", cls=Command)
def remove(name: Name, index: Index = None, file: File = None) -> None:
    """Remove a key.

    A running service refuses it at once.
    """
    _open(index, file).remove(name)
    note(f"removed the key {name}")


def _open(index: Path | None, file: Path | None) -> "KeyFile":
    from service.security.keys import KeyFile
    from service.settings import KEYS_FILE

    if file is None and index is None:
        raise typer.BadParameter("give --index INDEX or --keys FILE")
    return KeyFile(file if file is not None else Path(str(index)) / KEYS_FILE)


def _doing(role: str) -> str:
    return "reading and writing" if role == "write" else "reading"
