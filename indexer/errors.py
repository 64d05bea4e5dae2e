"""Errors of collections and indexes. Each message is one sentence."""


class IndexerError(Exception):
    """Base of all errors. The message states the problem and what to do."""


class UsageError(IndexerError):
    """An option, or a column of a metadata table, is invalid."""


class FieldError(UsageError):
    """The value of the field `field` is invalid."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


class IndexMissing(IndexerError):
    """There is no index in a folder."""


class IndexLocked(IndexerError):
    """Another process is writing to the index; the message contains its id."""


class ModelMismatch(IndexerError):
    """A descriptor or an index was made by another model."""


class FormatTooNew(IndexerError):
    """A newer version wrote the index; the message contains its format."""


class NotFound(IndexerError):
    """The index has no such photo or place, or a photo's file is missing."""


class DiskFull(IndexerError):
    """The disk of the index is full; nothing was changed."""


class IndexBusy(IndexerError):
    """Another writer kept the catalogue locked for too long; retrying may help."""


class StoreUnavailable(IndexerError):
    """The store of an index cannot be reached; retrying may help."""


class Superseded(IndexerError):
    """Another model has replaced the index's model since it was opened: open it again, and embed again."""


class NotCalibrated(IndexerError):
    """Confidence was requested, but the index is not calibrated."""


class XmpError(IndexerError):
    """A photo's XMP or sidecar cannot be read or written; the message continues after the file's name."""
