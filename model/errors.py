"""What this package raises."""


class ModelError(Exception):
    """A model, its weights or its input cannot be used; the message says why in one sentence."""


class ImageError(ModelError):
    """A photo cannot be read; the message is the reason in a few words, without the path."""


class TooManyPixels(ImageError):
    """A photo's header announces more pixels than allowed; it was not decoded."""
