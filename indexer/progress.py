"""Progress reports of long runs."""

from typing import Protocol


class Progress(Protocol):
    """Receiver of stages, progress and notes."""

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage; `total` is its number of photos, or None if unknown."""

    def advance(self, n: int = 1) -> None:
        """Count `n` more photos as done."""

    def note(self, text: str) -> None:
        """Show a note of one sentence."""


class Silent:
    """Progress that shows nothing."""

    def stage(self, name: str, total: int | None) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass
