"""`loci serve`: an index behind HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from loci.console import say
from loci.options import Precision, check_port, check_share


def serve(
    index: Annotated[
        Path,
        # Read here and not only by Settings, so that without it this is wrong usage like anywhere else.
        typer.Option(
            metavar="INDEX",
            envvar="LOCI_INDEX",
            show_envvar=False,
            help="The folder that holds the index, or milvus://HOST/NAME (LOCI_INDEX).",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The model file (LOCI_MODEL), where INDEX is milvus://HOST/NAME and no folder.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address to listen on (LOCI_HOST); 127.0.0.1 if not given."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            callback=check_port,
            help="Port to listen on (LOCI_PORT); 8000 if not given, 0 takes a free one.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Let everybody read, also from other machines; writing needs a key all the same.",
        ),
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file of API keys (LOCI_KEYS); INDEX/keys.json if not given."),
    ] = None,
    known_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            callback=check_share,
            help="Share of the photos asked about that show a place of the index: confidence holds for it "
            "(LOCI_KNOWN_SHARE); 0.8 if not given.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where the network runs: cpu, cuda, cuda:1 …; auto, if not given.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="FORMAT",
            help="Number format of the network: auto (the fastest safe one), fp32, bf16, fp16, int8 (CPUs).",
        ),
    ] = None,
) -> None:
    """Answer queries over HTTP.

    Open the address in a browser, or POST a photo to /v1/query; /docs explains the rest. What is not given
    here is taken from LOCI_INDEX, LOCI_HOST and so on; Ctrl-C ends it.
    """
    run_service(
        index,
        host=host,
        port=port,
        insecure=insecure or None,
        keys=keys,
        model=model,
        known_share=known_share,
        device=device,
        precision=precision,
    )


def run_service(index: Path, **given: str | int | float | bool | Path | None) -> None:
    """Serve an index with the settings given, those that are None taken from the environment."""
    from indexer.addresses import SCHEME
    from indexer.storage.layout import Layout

    if not str(index).startswith(SCHEME):
        Layout(index).current()  # where there is no index, says so before anything is announced

    from service.logs import set_up
    from service.server import serve
    from service.settings import Settings

    settings = Settings.load(index=index, **given)
    set_up(settings.log_format)
    serve(settings, announce=_announce)


def _announce(url: str) -> None:
    say(f"Serving on {url} (Ctrl-C stops it). Open it in a browser, or ask it about a photo:")
    say(f"  curl -F image=@photo.jpg {url}/v1/query")
