"""`loci train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from loci.console import count, duration, facts, note, say, say_json
from loci.exit_codes import Interrupted, SomeUnreadable
from loci.flags import with_flags
from loci.options import (
    MODEL,
    PHOTOS,
    ClustersOption,
    DeviceOption,
    DimOption,
    GhostsOption,
    ImageSizeOption,
    JsonFlag,
    MetadataOption,
    NetvladVersionOption,
    PhotosArgument,
    PoolingOption,
    TrainPrecisionOption,
    VladNormalisationOption,
    WeightsOption,
    at_least,
    command_line,
    option,
)
from loci.progress import Bars, Lines, showing_progress

if TYPE_CHECKING:
    from indexer.training.options import TrainReport

LEARNING = "Training"


def _learning(help: str, metavar: str, **more: Any) -> Any:
    return option(help, metavar, LEARNING, **more)


def train(
    photos: PhotosArgument,
    into: Annotated[Path, option("The model file to write, name.safetensors.", "MODEL", show_default=False)],
    metadata: MetadataOption = None,
    places: Annotated[
        str,
        option(
            "What makes a place if photos have no positions, or with --loss softmax: gps, folder, "
            "frames:N, or auto: gps, else the metadata's place.",
            "HOW",
            PHOTOS,
        ),
    ] = "auto",
    positive_radius: Annotated[
        float | None,
        option(
            "Photos this close that face the same way are positives; the most similar one is used. "
            "[default: the negative radius]",
            "METRES",
            PHOTOS,
        ),
    ] = None,
    negative_radius: Annotated[
        float, option("Photos farther apart than this are negatives.", "METRES", PHOTOS)
    ] = 25.0,
    held_out: Annotated[
        float,
        option("Share of the places held out of training, to measure recall.", "SHARE", PHOTOS),
    ] = 0.2,
    backbone: Annotated[
        Literal["vgg16", "deepface"],
        option("vgg16, or deepface: trained from scratch, for images with the same framing.", "NAME", MODEL),
    ] = "vgg16",
    connection: Annotated[
        Literal["local", "tiled", "convolution"] | None,
        option("Layers L4 to L6 of deepface: local, tiled, convolution. [default: local]", "KIND", MODEL),
    ] = None,
    weights: WeightsOption = None,
    pooling: PoolingOption = None,
    clusters: ClustersOption = None,
    ghosts: GhostsOption = None,
    netvlad_version: NetvladVersionOption = None,
    vlad_normalisation: VladNormalisationOption = None,
    dim: DimOption = None,
    image_size: ImageSizeOption = None,
    parts: Annotated[
        Literal["head", "conv5", "all"] | None,
        _learning(
            "What is trained: head (pooling and reduction), conv5 (that and the last block), or all. "
            "[default: head; deepface: all]",
            "WHICH",
        ),
    ] = None,
    loss: Annotated[
        Literal["triplet", "multi-similarity", "softmax"],
        _learning("triplet, multi-similarity, or softmax over places.", "NAME"),
    ] = "triplet",
    margin: Annotated[float, _learning("Margin of the triplet loss, on squared distances.", "M")] = 0.1,
    negatives: Annotated[int, _learning("Hardest negatives for each query.", "N", callback=at_least(1))] = 10,
    sampled: Annotated[
        int,
        _learning("Negatives drawn for each query; the hardest of them are used.", "N", callback=at_least(1)),
    ] = 1000,
    refresh: Annotated[
        int,
        _learning(
            "Queries after which all descriptors are computed again and a checkpoint is written.",
            "N",
            callback=at_least(1),
        ),
    ] = 500,
    epochs: Annotated[int, _learning("Most epochs.", "N", callback=at_least(1))] = 30,
    patience: Annotated[
        int, _learning("Stop after N epochs without better held-out recall.", "N", callback=at_least(1))
    ] = 5,
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        _learning(
            "adamw, or sgd with momentum 0.9. NetVLAD's recipe: sgd with --lr 0.04 --average 0 --crop 1.",
            "NAME",
        ),
    ] = "adamw",
    lr: Annotated[
        float,
        _learning(
            "Learning rate, halved every 5 epochs. With adamw, a fitted reduction and VGG16's own layers "
            "get a hundredth of it.",
            "RATE",
        ),
    ] = 1e-3,
    average: Annotated[
        float,
        _learning(
            "Decay of the moving average of the weights, which is what gets saved; 0 saves the last weights.",
            "SHARE",
        ),
    ] = 0.98,
    crop: Annotated[
        float | None,
        _learning(
            "Least share of each side that a random crop keeps; 1 turns cropping off. "
            "[default: 0.7; deepface: 1]",
            "SHARE",
        ),
    ] = None,
    batch: Annotated[
        int, _learning("Queries in a batch; with softmax, photos.", "B", callback=at_least(1))
    ] = 4,
    accumulate: Annotated[int, _learning("Batches for each optimiser step.", "N", callback=at_least(1))] = 1,
    seed: Annotated[int, _learning("Random seed.", "S", callback=at_least(0))] = 0,
    restart: Annotated[
        bool, option("Discard an earlier run into MODEL.", None, LEARNING, "--restart")
    ] = False,
    device: DeviceOption = "auto",
    precision: TrainPrecisionOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Train a model on photos with known places.

    Positions come from the photos or from --metadata. Some places are held out. The epoch with the best
    recall on them is kept, or the start if no epoch is better. MODEL is written at the end. The folder
    MODEL.training holds log.txt, log.jsonl, curve.svg and checkpoints: run the same command again to resume.
    To use the model: loci index PHOTOS --into INDEX --weights MODEL
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
        raise Interrupted("interrupted; run the same command again to resume") from None
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
        note("this run is already finished: more --epochs continue it, --restart starts over")
    better = report.best_epoch > 0
    say(f"{into}: {_recall(report.recall_after)} of held-out photos found")
    facts(
        [
            ("  before", _recall(report.recall_before)),
            (
                "  kept",
                f"epoch {report.best_epoch} of {report.epochs}"
                if better
                else "the start (no epoch was better)",
            ),
            ("  accuracy", None if report.accuracy is None else f"{report.accuracy:.1%}"),
            ("  trained on", _used(report)),
            ("  model", report.model),
            ("  time", duration(report.seconds)),
            ("  see", f"{into}.training/curve.svg"),
        ]
    )
    if not better:
        say("  Training did not improve recall: the file holds the starting model.")
    say(f"  To use it: {command_line('loci', 'index', 'PHOTOS', '--into', 'INDEX', '--weights', into)}")
    for remark in report.notes:
        say(f"  {with_flags(remark)}")
    if report.failed:
        say(f"{count(len(report.failed), 'photo')} could not be read:")
        for path, reason in report.failed:
            say(f"  {path}: {reason}")


def _used(report: "TrainReport") -> str:
    left_out = f", {report.left_out:,} left out" if report.left_out else ""
    return f"{count(report.trained_on, 'photo')}, {report.held_out:,} held out{left_out}"


def _recall(values: list[float]) -> str:
    return "recall@1/5/10 " + " / ".join(f"{100 * value:.1f}" for value in values) + " %"
