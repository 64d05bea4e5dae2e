"""Settings that every test runs with."""

import pytest
from PIL import Image

from tests.small_shards import make_shards_small

PILLOWS_LIMIT = Image.MAX_IMAGE_PIXELS


@pytest.fixture(autouse=True)
def _pillows_own_pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line switches Pillow's process-wide limit off; every test starts with it on."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PILLOWS_LIMIT)


make_shards_small()
