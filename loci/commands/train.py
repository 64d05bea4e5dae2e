"""`loci train`: teach a model to tell places apart."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loci.console import count, duration, facts, note, say, say_json
from loci.exit_codes import Interrupted, SomeUnreadable
from loci.options import DeviceOption, JsonFlag, TrainPrecision, at_least, command_line
from loci.progress import Bars, Lines, showing_progress

if TYPE_CHECKING:
    from indexer.training.options import TrainReport

PHOTOS, MODEL, LEARNING = "The photos", "The model to start from", "Learning"


def train(
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTOS", help="Folders of photos, or photos.", show_default=False),
    ],
    into: Annotated[
        Path,
        typer.Option(
            metavar="MODEL", help="The model's file to write, name.safetensors.", show_default=False
        ),
    ],
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV or GeoJSON that gives lat, lon, heading or place by path or file.",
            rich_help_panel=PHOTOS,
        ),
    ] = None,
    places: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Where photos have no position, or with --loss softmax, what makes a place: "
            "gps, folder, frames:N, or auto: gps, else the metadata's place.",
            rich_help_panel=PHOTOS,
        ),
    ] = "auto",
    positive_radius: Annotated[
        float | None,
        typer.Option(
            metavar="METRES",
            help="How near photos that look the same way show the same; of these the most alike counts. "
            "[default: the negative radius]",
            rich_help_panel=PHOTOS,
        ),
    ] = None,
    negative_radius: Annotated[
        float,
        typer.Option(
            metavar="METRES", help="Beyond this, photos show another place.", rich_help_panel=PHOTOS
        ),
    ] = 25.0,
    held_out: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share of the photos, by place, that training does not see and is measured on.",
            rich_help_panel=PHOTOS,
        ),
    ] = 0.2,
    backbone: Annotated[
        Literal["vgg16", "deepface"],
        typer.Option(
            metavar="NAME",
            help="vgg16, or deepface: trained from nothing, for images all framed alike.",
            rich_help_panel=MODEL,
        ),
    ] = "vgg16",
    connection: Annotated[
        Literal["local", "tiled", "convolution"] | None,
        typer.Option(
            metavar="KIND",
            help="Of deepface's L4 to L6: local, tiled, convolution. [default: local]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="imagenet, a name that 'loci weights list' knows, or a model file. [default: imagenet]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="netvlad, vlad, ghostvlad, average, gem. [default: netvlad]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(metavar="K", help="Clusters of the pooling. [default: 64]", rich_help_panel=MODEL),
    ] = None,
    ghosts: Annotated[
        int | None,
        typer.Option(metavar="G", help="Ghost clusters of ghostvlad. [default: 8]", rich_help_panel=MODEL),
    ] = None,
    netvlad_version: Annotated[
        int | None,
        typer.Option(
            metavar="V", help="2: with an assignment bias, trained too. [default: 1]", rich_help_panel=MODEL
        ),
    ] = None,
    vlad_normalisation: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="Of vlad: intra, ssr, none. [default: intra]", rich_help_panel=MODEL
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(
            metavar="D", help="Numbers in a descriptor, at most. [default: 512]", rich_help_panel=MODEL
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Longest side that larger photos are shrunk to. [default: 640]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    parts: Annotated[
        Literal["head", "conv5", "all"] | None,
        typer.Option(
            metavar="WHICH",
            help="What learns: head (pooling and reduction), conv5 too, or all of it. "
            "[default: head; deepface: all]",
            rich_help_panel=LEARNING,
        ),
    ] = None,
    loss: Annotated[
        Literal["triplet", "multi-similarity", "softmax"],
        typer.Option(
            metavar="NAME",
            help="triplet, multi-similarity, or softmax over places.",
            rich_help_panel=LEARNING,
        ),
    ] = "triplet",
    margin: Annotated[
        float,
        typer.Option(
            metavar="M", help="Of the triplet loss, on squared distances.", rich_help_panel=LEARNING
        ),
    ] = 0.1,
    negatives: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Hardest negatives a query.",
            callback=at_least(1),
            rich_help_panel=LEARNING,
        ),
    ] = 10,
    sampled: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Negatives drawn a query, of which the hardest are taken.",
            callback=at_least(1),
            rich_help_panel=LEARNING,
        ),
    ] = 1000,
    refresh: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Queries between two computations of all descriptors; checkpoints are written then.",
            callback=at_least(1),
            rich_help_panel=LEARNING,
        ),
    ] = 500,
    epochs: Annotated[
        int,
        typer.Option(metavar="N", help="At most.", callback=at_least(1), rich_help_panel=LEARNING),
    ] = 30,
    patience: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Stop after N epochs without a better held-out recall.",
            callback=at_least(1),
            rich_help_panel=LEARNING,
        ),
    ] = 5,
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        typer.Option(
            metavar="NAME",
            help="adamw, or sgd with momentum 0.9; NetVLAD's own recipe is sgd with --lr 0.04 --average 0 "
            "--crop 1.",
            rich_help_panel=LEARNING,
        ),
    ] = "adamw",
    lr: Annotated[
        float,
        typer.Option(
            metavar="RATE",
            help="Learning rate, halved every 5 epochs; by adamw, a fitted reduction and VGG16's own layers "
            "have a hundredth of it.",
            rich_help_panel=LEARNING,
        ),
    ] = 1e-3,
    average: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="How much of its past the mean of the weights, which is what is kept, keeps at each step; "
            "0: the last weights.",
            rich_help_panel=LEARNING,
        ),
    ] = 0.98,
    crop: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of each side of a photo at least so much is seen; 1: all of it, always. "
            "[default: 0.7; deepface: 1]",
            rich_help_panel=LEARNING,
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            metavar="B",
            help="Queries in a batch; with softmax, photos.",
            callback=at_least(1),
            rich_help_panel=LEARNING,
        ),
    ] = 4,
    accumulate: Annotated[
        int,
        typer.Option(metavar="N", help="Batches a step.", callback=at_least(1), rich_help_panel=LEARNING),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            metavar="S", help="Of all random choices.", callback=at_least(0), rich_help_panel=LEARNING
        ),
    ] = 0,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Forget an earlier run into MODEL.", rich_help_panel=LEARNING),
    ] = False,
    device: DeviceOption = "auto",
    precision: Annotated[
        TrainPrecision,
        typer.Option(
            metavar="FORMAT",
            help="Number format of the network: auto (the fastest safe one), fp32, bf16, fp16.",
        ),
    ] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Teach a model to tell places apart.

    It learns from photos whose places are known: positions come from the photos or --metadata. Part of
    the places is held out, and the model of the epoch that finds those best is kept; nothing is claimed
    where none is better than the start. MODEL is written at the end; the folder MODEL.training holds log.txt,
    log.jsonl, curve.png and what a stopped run goes on from, when the same command is given again. Use the
    model by: loci index PHOTOS --into INDEX --weights MODEL
    """
    from indexer.options import BuildOptions
    from indexer.training.dataset import Supervision
    from indexer.training.options import TrainingOptions
    from indexer.training.train import train_model
    from model.training.trainer import TrainOptions

    said = BuildOptions(
        dim=dim,
        clusters=clusters,
        image_size=image_size,
        weights=weights,
        pooling=pooling,
        ghosts=ghosts,
        netvlad_version=netvlad_version,
        vlad_normalisation=vlad_normalisation,
        places=places,
    )
    options = TrainingOptions(
        fit=said,
        backbone=backbone,
        connection=connection,
        parts=parts,
        supervision=Supervision(
            positive_radius_m=positive_radius,
            negative_radius_m=negative_radius,
            held_out=held_out,
            places=places,
            seed=seed,
            classify=loss == "softmax",
        ),
        train=TrainOptions(
            loss=loss,
            margin=margin,
            negatives=negatives,
            sampled=sampled,
            refresh=refresh,
            epochs=epochs,
            patience=patience,
            optimizer=optimizer,
            lr=lr,
            average=average,
            crop=crop,
            batch=batch,
            accumulate=accumulate,
            seed=seed,
        ),
        metadata=metadata,
        device=device,
        precision=precision,
        restart=restart,
    )
    try:
        with showing_progress() as progress:
            report = train_model(photos, into, options, _Progress(progress))
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on where it stopped") from None
    if as_json:
        say_json({"into": str(into), **report.to_json()})
    else:
        _print(report, into)
    if report.failed:
        raise SomeUnreadable


class _Progress:
    """Shows stages as bars or lines, and each epoch as a line that stays."""

    def __init__(self, shown: "Bars | Lines") -> None:
        self.stage, self.advance, self.note = shown.stage, shown.advance, shown.note
        self.epoch = shown.note


def _print(report: "TrainReport", into: Path) -> None:
    if report.finished_before:
        note("this run was finished before; a larger --epochs goes on with it, --restart begins anew")
    better = report.best_epoch > 0
    say(f"{into}: {_recall(report.recall_after)} of held-out photos found")
    facts(
        [
            ("  before", _recall(report.recall_before)),
            (
                "  kept",
                f"epoch {report.best_epoch} of {report.epochs}"
                if better
                else "the start: no epoch was better",
            ),
            ("  accuracy", None if report.accuracy is None else f"{report.accuracy:.1%}"),
            ("  trained on", _used(report)),
            ("  model", report.model),
            ("  time", duration(report.seconds)),
            ("  see", f"{into}.training/curve.png"),
        ]
    )
    if not better:
        say("  Training made nothing better: the file holds the model that it started from.")
    say(f"  To use it: {command_line('loci', 'index', 'PHOTOS', '--into', 'INDEX', '--weights', into)}")
    for remark in report.notes:
        say(f"  {remark}")
    if report.failed:
        say(f"{count(len(report.failed), 'photo')} could not be read:")
        for path, reason in report.failed:
            say(f"  {path}: {reason}")


def _used(report: "TrainReport") -> str:
    left_out = f", {report.left_out:,} left out" if report.left_out else ""
    return f"{count(report.trained_on, 'photo')}, {report.held_out:,} held out{left_out}"


def _recall(values: list[float]) -> str:
    return "recall@1/5/10 " + " / ".join(f"{100 * value:.1f}" for value in values) + " %"
