"""What can go wrong with a collection or an index, each said in one sentence."""


class IndexerError(Exception):
    """Something about a collection or an index stops the work; the message says what, and what to do."""


class UsageError(IndexerError):
    """The caller asked for something that cannot be: a bad option, a bad metadata column."""


class FieldError(UsageError):
    """A value that cannot be; `field` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


class IndexMissing(IndexerError):
    """There is no index where one was expected."""


class IndexLocked(IndexerError):
    """Another run is writing to this index; the message names the holder."""


class ModelMismatch(IndexerError):
    """A descriptor or an index was made by another model than the one at hand."""


class FormatTooNew(IndexerError):
    """The index was written by a newer version; the message names the version that reads it."""


class NotFound(IndexerError):
    """The index has no photo or place of that id, or a photo's file is gone."""


class DiskFull(IndexerError):
    """The disk that holds the index has no room left; nothing was changed."""


class IndexBusy(IndexerError):
    """Another writer has kept the catalogue for itself for too long: the same may work in a moment."""


class StoreUnavailable(IndexerError):
    """The store that an index answers from cannot be asked now: the same may work in a moment."""


class Superseded(IndexerError):
    """Another model has taken over the index since it was opened: open it again, and embed again."""


class NotCalibrated(IndexerError):
    """The index cannot say how sure it is, where that was asked for."""


class XmpError(IndexerError):
    """A photo's XMP or sidecar cannot be read or written; the message goes on from the file's name."""
