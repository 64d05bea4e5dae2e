"""`loci serve`."""

from pathlib import Path
from typing import Annotated

import typer

from loci.console import say
from loci.options import Precision, check_port, check_share


def serve(
    index: Annotated[
        Path,
        # Also read here, not only by Settings, so that its absence is a usage error.
        typer.Option(
            metavar="INDEX",
            envvar="LOCI_INDEX",
            show_envvar=False,
            help="The index's folder, or milvus://HOST/NAME (LOCI_INDEX).",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The model file; needed if INDEX is milvus://HOST/NAME (LOCI_MODEL).",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address to listen on (LOCI_HOST). [default: 127.0.0.1]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            callback=check_port,
            help="Port to listen on; 0 takes a free one (LOCI_PORT). [default: 8000]",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Let everybody read without a key, also from other machines. Writing still needs a key.",
        ),
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file of API keys (LOCI_KEYS). [default: INDEX/keys.json]"),
    ] = None,
    known_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            callback=check_share,
            help="Share of queries that show a place in the index; confidence depends on it "
            "(LOCI_KNOWN_SHARE). [default: 0.8]",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Device for the network: auto (a GPU if there is one), cpu, cuda, cuda:1 … (LOCI_DEVICE).",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="FORMAT",
            help="Number format of the network: auto (the fastest safe one), fp32, bf16, fp16, int8 (CPU).",
        ),
    ] = None,
) -> None:
    """Serve an index over HTTP.

    Open the address in a browser, or POST a photo to /v1/query. The interface is documented at /docs.
    Options that are not given come from LOCI_INDEX, LOCI_HOST and so on. Ctrl-C stops the service.
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
    """Serve an index. Settings that are None come from the environment."""
    from indexer.addresses import SCHEME
    from indexer.storage.layout import Layout

    if not str(index).startswith(SCHEME):
        Layout(index).current()  # a missing index is reported before anything is announced

    from service.logs import set_up
    from service.server import serve
    from service.settings import Settings

    settings = Settings.load(index=index, **given)
    set_up(settings.log_format)
    serve(settings, announce=_announce)


def _announce(url: str) -> None:
    say(f"Serving on {url} (Ctrl-C stops it). Open it in a browser, or send a photo:")
    say(f"  curl -F image=@photo.jpg {url}/v1/query")
