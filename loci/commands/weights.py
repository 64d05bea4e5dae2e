"""`loci weights`: published weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loci.console import say, say_json, size, table
from loci.exit_codes import Interrupted
from loci.help_format import Command, Group
from loci.options import JsonFlag, command_line
from loci.progress import showing_progress

if TYPE_CHECKING:
    from model.weights import Named


weights = typer.Typer(
    name="weights", cls=Group, rich_markup_mode=None, help="List, download or convert published weights."
)

MB = 1_000_000
COLUMNS = (("name", "left"), ("here", "left"), ("size", "right"), ("what it is", "left"))


@weights.command("list", cls=Command)
def list_weights(as_json: JsonFlag = False) -> None:
    """List the weights that can be downloaded by name."""
    from model.weights import NAMED, cache_folder

    found = [_state(named) for named in NAMED.values()]
    if as_json:
        say_json(found)
        return
    rows = [
        (row["name"], "yes" if row["here"] else "no", row["bytes"] and size(row["bytes"]), row["about"])
        for row in found
    ]
    table(COLUMNS, rows)
    say("")
    say(f"Downloaded weights are kept in {cache_folder()}")


@weights.command("pull", cls=Command)
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from 'loci weights list'.")],
    sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="Expected SHA-256 of the download, if you know it."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Download weights by name.

    An interrupted download is resumed. The publisher gives no checksums, so the SHA-256 of the download is
    printed and recorded in the model file.
    """
    from model import weights as model_weights
    from model.modelfile import load_model

    with showing_progress() as progress:
        there = 0

        def told(now: int, total: int | None) -> None:
            nonlocal there
            if there == 0:
                progress.stage(f"downloading {name} (MB)", None if total is None else total // MB, "MB")
            progress.advance(now // MB - there // MB)
            there = now

        try:
            path = model_weights.pull(name, sha256=sha256, told=told)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; run the same command again to resume") from None
    config = load_model(path).config
    digest = config.provenance.get("sha256")
    if as_json:
        say_json({"name": name, "path": str(path), "sha256": digest, "dim": config.output_dim})
        return
    say(f"{name} is in {path}; SHA-256 of the download: {digest}")
    say(f"To use it: {command_line('loci', 'index', 'PHOTOS', '--into', 'INDEX', '--weights', name)}")


@weights.command("import", cls=Command)
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="NetVLAD's .mat file, or a checkpoint of pytorch-NetVlad or Patch-NetVLAD."
        ),
    ],
    into: Annotated[Path, typer.Option(metavar="MODEL", help="The model file to write, name.safetensors.")],
    as_json: JsonFlag = False,
) -> None:
    """Convert published weights to a model file."""
    from model.weights import import_weights

    model = import_weights(file, into)
    config = model.config
    if as_json:
        say_json(
            {
                "into": str(into),
                "model": model.fingerprint,
                "clusters": config.clusters,
                "dim": config.output_dim,
                "netvlad_version": config.version,
                "sha256": config.provenance["sha256"],
            }
        )
        return
    reduced = f"reduced to {config.dim:,}" if config.dim else "not reduced"
    say(f"{into}: model {model.fingerprint}, {config.clusters} clusters, {reduced}")
    say(f"To use it: {command_line('loci', 'index', 'PHOTOS', '--into', 'INDEX', '--weights', into)}")


def _state(named: "Named") -> dict[str, Any]:
    from model.weights import fetched

    path = fetched(named.name)
    here = named.url is None or path.exists()
    return {
        "name": named.name,
        "here": here,
        "bytes": path.stat().st_size if named.url is not None and here else None,
        "path": str(path) if named.url is not None else None,
        "url": named.url,
        "about": named.about,
    }
