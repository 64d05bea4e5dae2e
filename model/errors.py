"""Errors of this package."""


class ModelError(Exception):
    """A model, its weights or its input cannot be used."""


class ImageError(ModelError):
    """A photo cannot be read; the message is the reason in a few words, without the path."""


class TooManyPixels(ImageError):
    """A photo's header has more pixels than allowed; it was not decoded."""
