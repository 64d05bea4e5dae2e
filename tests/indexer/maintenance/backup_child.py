"""Runs `backup` by orders of `killing` with `index` and `out`. Writes are events."""

from pathlib import Path

from indexer.maintenance import backup
from tests.indexer.killing import Killable, Order, serve


def run(order: Order) -> None:
    told = Killable(order)
    told.watch(str)
    vars(backup).update(BLOCK=512)
    backup._Archive._put = told.around(backup._Archive._put)  # type: ignore[method-assign]
    backup.backup(Path(order["index"]), Path(order["out"]))


if __name__ == "__main__":
    serve(run)
