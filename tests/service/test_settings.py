"""Settings come from code first, then from LOCI_ variables."""

from pathlib import Path

import pytest

from service.errors import ServiceError
from service.settings import Settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LOCI_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = Settings.load(index=Path("walls"))
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert not settings.insecure
    assert settings.max_upload_bytes == 20_000_000
    assert settings.max_pixels == 100_000_000


def test_given_values_win_over_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCI_INDEX", "from-variable")
    monkeypatch.setenv("LOCI_PORT", "9000")
    monkeypatch.setenv("LOCI_MAX_BATCH", "3")
    settings = Settings.load(port=9001, max_batch=None)
    assert (settings.index, settings.port, settings.max_batch) == (Path("from-variable"), 9001, 3)


def test_a_wrong_value_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCI_PORT", "http")
    with pytest.raises(ServiceError, match=r"^setting port \(LOCI_PORT\): Input should be a valid integer"):
        Settings.load(index=Path("walls"))


@pytest.mark.parametrize("share", ["0", "1", "-1", "nan"])
def test_invalid_share_is_refused(monkeypatch: pytest.MonkeyPatch, share: str) -> None:
    monkeypatch.setenv("LOCI_KNOWN_SHARE", share)
    with pytest.raises(ServiceError, match=r"^setting known_share \(LOCI_KNOWN_SHARE\): Input should be "):
        Settings.load(index=Path("walls"))
    monkeypatch.setenv("LOCI_KNOWN_SHARE", "0.25")
    assert Settings.load(index=Path("walls")).known_share == 0.25


def test_a_missing_index_setting_is_named() -> None:
    with pytest.raises(ServiceError, match=r"^setting index \(LOCI_INDEX\): Field required$"):
        Settings.load()


def test_every_setting_is_documented() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCI_ALLOWED_HOSTS", "loci.example.org, photos.example.org,")
    settings = Settings.load(index=Path("walls"), cors_origins=("https://map.example.org",))
    assert settings.allowed_hosts == ("loci.example.org", "photos.example.org")
    assert settings.cors_origins == ("https://map.example.org",)
    assert settings.trusted_proxies == ()


@pytest.mark.parametrize("value", ["9100", ":9100", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_a_metrics_address_is_an_address_and_a_port(value: str) -> None:
    with pytest.raises(
        ServiceError, match=r"^setting metrics_address \(LOCI_METRICS_ADDRESS\): .*127\.0\.0\.1:9100$"
    ):
        Settings.load(index=Path("walls"), metrics_address=value)


def test_keys_and_metrics_have_their_places() -> None:
    settings = Settings.load(index=Path("walls"))
    assert settings.keys_file == Path("walls/keys.json")
    assert settings.metrics_here
    assert Settings.load(index=Path("walls"), keys=Path("k")).keys_file == Path("k")
    assert not Settings.load(index=Path("walls"), metrics_address="[::1]:9100").metrics_here
    assert not Settings.load(index=Path("walls"), metrics=False).metrics_here


@pytest.mark.parametrize(
    "template",
    [
        "tiles/{z}/{x}/{y}.png",
        "https://{s}.example/{z}/{x}/{y}.png",
        "https://a.example/{z} {x}/{y}",
        "javascript:{z}{x}{y}",
    ],
)
def test_tiles_come_from_one_host(template: str) -> None:
    with pytest.raises(
        ServiceError, match=r"^setting map_tiles \(LOCI_MAP_TILES\): must be an http or https URL"
    ):
        Settings.load(index=Path("walls"), map_tiles=template)


def test_tiles_have_all_three_numbers() -> None:
    with pytest.raises(ServiceError, match=r"LOCI_MAP_TILES\): must hold \{z\}, \{x\} and \{y\}$"):
        Settings.load(index=Path("walls"), map_tiles="https://a.example/{z}/{x}.png")


def test_no_tiles_are_the_default_and_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCI_MAP_TILES", "")
    assert Settings.load(index=Path("walls")).map_tiles is None
