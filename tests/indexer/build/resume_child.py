"""Runs `build_index` by orders of `killing` with `photos` and `index`. Writes to the catalogue are events."""

from pathlib import Path

import indexer.build.fit
from indexer.build.run import build_index
from indexer.options import BuildOptions
from indexer.storage.catalogue import Catalogue
from tests.indexer.killing import Killable, Order, serve

SAMPLE, REDUCTION, BATCH = 70, 132, 4
OPTIONS = BuildOptions(
    clusters=4, image_size=48, dim=24, batch_size=BATCH, device="cpu", precision="fp32", places="photo"
)


class Run(Killable):
    def stage(self, name: str, total: int | None) -> None:
        if name == "embedding (to fit)":  # twice, for the clusters and for the reduction
            clustered = Path(self.order["index"], "generations/01/spool/clustered.safetensors").exists()
            name += " 2" if clustered else " 1"
        super().stage(name, total)


def run(order: Order) -> None:
    told = Run(order)
    told.watch(lambda item: str(item[0]))
    vars(indexer.build.fit).update(SAMPLE_PHOTOS=SAMPLE, REDUCTION_VIEWS=REDUCTION)
    Catalogue.put_file = told.around(Catalogue.put_file)  # type: ignore[method-assign]
    Catalogue.add_descriptors = told.around(Catalogue.add_descriptors)  # type: ignore[method-assign]
    Catalogue.replace_places = told.around(Catalogue.replace_places)  # type: ignore[method-assign]
    build_index([Path(order["photos"])], Path(order["index"]), OPTIONS, told)


if __name__ == "__main__":
    serve(run)
