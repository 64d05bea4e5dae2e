"""How a long run says where it is."""

from typing import Protocol


class Progress(Protocol):
    """Hears of stages, of what is done in them, and of what a person should know."""

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins; `total` is how many photos it will take, where that is known."""

    def advance(self, n: int = 1) -> None:
        """So many more photos of the stage are done."""

    def note(self, text: str) -> None:
        """Something a person should know, in one sentence."""


class Silent:
    """Says nothing."""

    def stage(self, name: str, total: int | None) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass
