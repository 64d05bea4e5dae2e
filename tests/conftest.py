"""What every test is protected from."""

from collections.abc import Iterator

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _pillows_own_pixel_limit() -> Iterator[None]:
    """The command line switches Pillow's process-wide limit off; no test leaves it so for the next."""
    limit = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = limit
