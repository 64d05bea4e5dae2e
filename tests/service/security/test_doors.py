"""Who gets in: keys, hosts, sites, rates and headers, against the running app."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import APIRouter

from service.app import create_app
from service.routes import photos
from service.security.keys import KeyFile, Role
from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]

READING = ("/v1/places", "/v1/photos/red", "/v1/photos/red/thumbnail", "/metrics", "/docs", "/openapi.json")
OPEN = ("/healthz", "/readyz", "/")


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    """Where the app of these tests looks for its keys."""
    (tmp_path / "index").mkdir()
    return KeyFile(tmp_path / "index" / "keys.json")


@pytest.fixture
def _writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the photos' routes one that writes."""
    writing = APIRouter()

    @writing.post("/v1/written", status_code=201)
    def write() -> dict[str, bool]:
        return {"written": True}

    monkeypatch.setattr(photos, "writing", writing, raising=False)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_on_loopback_without_a_read_key_reading_is_open(
    start: Start, index: FakeIndex, file: KeyFile
) -> None:
    file.create("editor", Role.WRITE)
    client = start(index)
    for path in (*READING, *OPEN):
        assert client.get(path).status_code == 200
        assert client.get(path, headers=bearer("loci_unknown")).status_code == 200


def test_once_there_is_a_read_key_reading_needs_a_key(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem, make_photo: MakePhoto
) -> None:
    client = start(index)
    assert client.get("/v1/places").status_code == 200
    read, write = file.create("robot", Role.READ), file.create("editor", Role.WRITE)
    for path in (*READING, "/nowhere", "/static-offline-docs/swagger-ui.css", "/healthz/", "/page"):
        refused = client.get(path, follow_redirects=False)
        body = problem(refused, 401)
        assert body["type"] == "urn:loci:problem:unauthorised"
        assert refused.headers["www-authenticate"] == "Bearer"
    problem(client.post("/v1/query", files={"image": make_photo()}), 401)
    for path in OPEN:
        assert client.get(path).status_code == 200
    for key in (read, write):
        assert client.get("/v1/places", headers=bearer(key)).status_code == 200
        assert client.get("/nowhere", headers=bearer(key)).status_code == 404
    answer = client.post("/v1/query", files={"image": make_photo()}, headers=bearer(read))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer loci_unknown",
        "Basic cm9ib3Q6eA==",
        "{key}",
        "Token {key}",
        "Bearer {key}x",
        "Bearer x, Bearer {key}",
    ],
)
def test_unknown_key_opens_nothing(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem, header: str
) -> None:
    key = file.create("robot", Role.READ)
    sent = {"Authorization": header.format(key=key)}
    problem(start(index).get("/v1/places", headers=sent), 401)


def test_a_key_is_taken_from_the_header_alone(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    key = file.create("robot", Role.READ)
    client = start(index)
    problem(client.get("/v1/places", params={"key": key, "api_key": key}), 401)
    problem(client.get("/v1/places", headers={"Cookie": f"key={key}"}), 401)
    twice = [("Authorization", f"Bearer {key}"), ("Authorization", "Bearer x")]
    problem(client.get("/v1/places", headers=twice), 401)
    assert client.get("/v1/places", headers={"Authorization": f"bearer   {key}"}).status_code == 200


@pytest.mark.usefixtures("_writing")
def test_writing_needs_a_key_that_writes(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    client = start(index)
    refused = client.post("/v1/written")
    assert problem(refused, 401)["detail"] == (
        "this needs a key for writing; send it as 'Authorization: Bearer KEY'"
    )
    assert refused.headers["www-authenticate"] == "Bearer"
    read, write = file.create("robot", Role.READ), file.create("editor", Role.WRITE)
    problem(client.post("/v1/written", headers=bearer("loci_unknown")), 401)
    refused = client.post("/v1/written", headers=bearer(read))
    assert problem(refused, 403)["detail"] == "the key robot is for reading, this needs one for writing"
    assert client.post("/v1/written", headers=bearer(write)).json() == {"written": True}


@pytest.mark.usefixtures("_writing")
def test_insecure_opens_reading_and_not_writing(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    file.create("robot", Role.READ)
    client = start(index, insecure=True, host="0.0.0.0")
    assert client.get("/v1/places").status_code == 200
    problem(client.post("/v1/written"), 401)


@pytest.mark.usefixtures("_writing")
def test_the_description_says_what_needs_a_key(tmp_path: Path) -> None:
    description = create_app(Settings(index=tmp_path)).openapi()
    assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert description["paths"]["/v1/written"]["post"]["security"] == [{"key": []}]
    assert description["paths"]["/v1/query"]["post"]["security"] == [{}, {"key": []}]
    assert "security" not in description["paths"]["/healthz"]["get"]
    assert {"401", "403"} <= set(description["paths"]["/v1/written"]["post"]["responses"])


def test_reading_needs_a_key_on_public_addresses(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    key = file.create("editor", Role.WRITE)
    client = start(index, host="0.0.0.0")
    problem(client.get("/v1/places"), 401)
    assert client.get("/v1/places", headers=bearer(key)).status_code == 200
    file.remove("editor")
    problem(client.get("/v1/places"), 401)
    problem(client.get("/v1/places", headers=bearer(key)), 401)


def test_keys_come_and_go_while_the_service_runs(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    one, two = file.create("one", Role.READ), file.create("two", Role.READ)
    client = start(index)
    assert client.get("/v1/places", headers=bearer(one)).status_code == 200
    file.remove("one")
    problem(client.get("/v1/places", headers=bearer(one)), 401)
    assert client.get("/v1/places", headers=bearer(two)).status_code == 200


def test_a_damaged_keys_file_lets_nobody_in(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    key = file.create("robot", Role.READ)
    whole = file.path.read_bytes()
    client = start(index)
    for damage in (lambda: file.path.write_bytes(whole[:40]), file.path.unlink):
        damage()
        for headers in ({}, bearer(key)):
            refused = client.get("/v1/places", headers=headers)
            assert problem(refused, 503)["type"] == "urn:loci:problem:keys-unreadable"
            assert refused.headers["retry-after"] == "30"
        assert "keys file" in problem(client.get("/readyz"), 503)["detail"]
        assert client.get("/healthz").status_code == 200
        file.path.write_bytes(whole)
        assert client.get("/v1/places", headers=bearer(key)).status_code == 200


def test_a_key_is_in_no_log_line_and_no_answer(
    start: Start, index: FakeIndex, file: KeyFile, caplog: pytest.LogCaptureFixture, wait: Wait
) -> None:
    key = file.create("robot", Role.READ)
    client = start(index)
    with caplog.at_level(logging.DEBUG):
        answers = [
            client.get("/v1/photos/red", params={"token": key}, headers=bearer(key)),
            client.get("/v1/photos/red", headers=bearer(key[:-1])),
            client.get("/nowhere", headers=bearer(key)),
        ]
        wait(lambda: sum(record.name == "service.security.middleware" for record in caplog.records) == 3)
    lines = [record for record in caplog.records if record.name == "service.security.middleware"]
    assert [line.__dict__["key"] for line in lines] == ["robot", None, "robot"]
    for record in caplog.records:
        if record.name.startswith("service"):
            assert key[:-1] not in json.dumps(record.__dict__, default=str)
    for answer in answers:
        assert key[:-1] not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "host", ["rebind.example.org", "rebind.example.org:8000", "x<script>y", "127.0.0.1.nip.io"]
)
def test_a_foreign_host_is_misdirected(client: httpx.Client, problem: Problem, host: str) -> None:
    for path in (*READING, *OPEN):
        response = client.get(path, headers={"Host": host})
        assert problem(response, 421)["type"] == "urn:loci:problem:misdirected"
        assert "script" not in response.text


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:80", "service:8000"])
def test_our_own_names_are_not(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/places", headers={"Host": host}).status_code == 200


def test_hosts_can_be_named(start: Start, index: FakeIndex, problem: Problem) -> None:
    client = start(index, allowed_hosts=("Loci.Example.Org",))
    assert client.get("/v1/places", headers={"Host": "loci.example.org"}).status_code == 200
    problem(client.get("/v1/places", headers={"Host": "example.org"}), 421)


def test_any_host_is_allowed_if_reading_needs_a_key(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    headers = bearer(file.create("robot", Role.READ)) | {"Host": "loci.example.org"}
    assert start(index).get("/v1/places", headers=headers).status_code == 200
    problem(start(index, allowed_hosts=("example.org",)).get("/v1/places", headers=headers), 421)


def test_pages_of_other_sites_are_refused(
    client: httpx.Client, make_photo: MakePhoto, problem: Problem
) -> None:
    foreign = {"Origin": "https://evil.example.org", "Sec-Fetch-Site": "cross-site"}
    read = client.get("/v1/places", headers=foreign)
    assert not [name for name in read.headers if name.startswith("access-control-")]
    assert read.headers["cross-origin-resource-policy"] == "same-origin"
    asked = client.post("/v1/query", files={"image": make_photo()}, headers=foreign)
    problem(asked, 403)
    preflight = {"Origin": "https://evil.example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/query", headers=preflight).headers
    ours = {"Origin": str(client.base_url), "Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/query", files={"image": make_photo()}, headers=ours).status_code == 200


def test_origins_can_be_allowed(
    start: Start, index: FakeIndex, file: KeyFile, make_photo: MakePhoto, problem: Problem
) -> None:
    key = file.create("robot", Role.READ)
    client = start(index, cors_origins=("https://map.example.org",))
    ours = {"Origin": "https://map.example.org", "Sec-Fetch-Site": "cross-site"}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = client.options("/v1/query", headers=ours | asking)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://map.example.org"
    answer = client.post("/v1/query", files={"image": make_photo()}, headers=ours | bearer(key))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://map.example.org"
    assert "access-control-allow-credentials" not in answer.headers
    refused = client.post("/v1/query", headers=ours)
    problem(refused, 401)
    assert refused.headers["access-control-allow-origin"] == "https://map.example.org", (
        "so that it can be read"
    )
    other = ours | {"Origin": "https://evil.example.org"}
    assert client.options("/v1/query", headers=other | asking).status_code == 400
    problem(client.post("/v1/query", headers=other | bearer(key)), 403)


PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/places", "/v1/photos/red/image", "/v1/photos/red/thumbnail", "/nowhere", "/openapi.json"],
)
def test_every_answer_says_what_a_browser_may_do_with_it(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == PAGE_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "server" not in headers


def test_only_the_documentation_has_a_looser_policy(client: httpx.Client) -> None:
    page = client.get("/docs")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["script-src"] == "'self'"
    assert policy["style-src"] == "'self' 'unsafe-inline'"
    assert re.findall(r"<script[^>]*>[^<]", page.text) == []
    assert "unsafe" not in client.get("/docs/start.js").headers["content-security-policy"]


def test_rate_limit_sends_retry_after(
    start: Start, index: FakeIndex, file: KeyFile, problem: Problem
) -> None:
    key = file.create("editor", Role.WRITE)
    client = start(index, rate_limit=0.5, rate_burst=3)
    assert [client.get("/v1/places").status_code for _ in range(3)] == [200] * 3
    refused = client.get("/v1/places")
    assert problem(refused, 429)["type"] == "urn:loci:problem:too-many-requests"
    assert refused.headers["retry-after"] == "2"
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    assert client.get("/v1/places", headers=bearer(key)).status_code == 200, "a key has a bucket of its own"
    problem(client.get("/v1/places", headers=bearer("loci_unknown")), 429)
    problem(client.get("/v1/places", headers={"X-Forwarded-For": "192.0.2.1"}), 429)
    metrics = client.get("/metrics", headers=bearer(key)).text
    assert 'loci_refused_total{problem="too-many-requests"} 3.0' in metrics


def test_trusted_proxy_sets_the_client_address(start: Start, index: FakeIndex, problem: Problem) -> None:
    client = start(index, rate_limit=0.001, rate_burst=1, trusted_proxies=("127.0.0.1",))
    for address in ("192.0.2.1", "192.0.2.2"):
        headers = {"X-Forwarded-For": address}
        assert client.get("/v1/places", headers=headers).status_code == 200
        problem(client.get("/v1/places", headers=headers), 429)


def test_a_request_has_an_id_everywhere(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, wait: Wait, problem: Problem
) -> None:
    with caplog.at_level(logging.INFO, logger="service.security.middleware"):
        named = client.get("/v1/photos/pink", headers={"X-Request-ID": "robot-7.42"})
        wait(lambda: bool(caplog.records))
    assert named.headers["x-request-id"] == "robot-7.42"
    assert problem(named, 404)["request_id"] == "robot-7.42"
    made = client.get("/v1/photos/pink", headers={"X-Request-ID": "<script>"})
    assert re.fullmatch(r"[0-9a-f]{32}", made.headers["x-request-id"])
    assert made.json()["request_id"] == made.headers["x-request-id"]
    assert (
        client.get("/v1/places").headers["x-request-id"] != client.get("/v1/places").headers["x-request-id"]
    )


def test_refusals_are_counted_by_kind(client: httpx.Client) -> None:
    for path in ("/nowhere", "/v1/query", "/v1/photos/pink"):
        client.get(path)
    client.get("/", headers={"Host": "rebind.example.org"})
    text = client.get("/metrics").text
    for kind, count in {"not-found": 2, "method-not-allowed": 1, "misdirected": 1}.items():
        assert f'loci_refused_total{{problem="{kind}"}} {count}.0' in text


def test_metrics_can_be_off(start: Start, index: FakeIndex, problem: Problem) -> None:
    client = start(index, metrics=False)
    problem(client.get("/metrics"), 404)
    assert "/metrics" not in client.get("/openapi.json").json()["paths"]


def test_metrics_count_known_and_unknown_answers(
    start: Start, index: FakeIndex, make_photo: MakePhoto
) -> None:
    client = start(index)
    for index.known, index.confidence in ((None, None), (True, 0.9), (True, 0.6), (False, 0.1)):
        answer = client.post("/v1/query", files={"image": make_photo()}).json()
        assert (answer["known"], answer["confidence"]) == (index.known, index.confidence)
        assert answer["position"]["heading"] == 270.0
    text = client.get("/metrics").text
    for known, count in {"unsure": 1, "known": 2, "unknown": 1}.items():
        assert f'loci_answers_total{{known="{known}"}} {count}.0' in text
    assert "loci_index_places 3.0" in text
    assert "loci_uploads 0.0" in text


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "PROPFIND", "CONNECT", "BREW"])
def test_other_methods_get_a_clean_error(client: httpx.Client, problem: Problem, method: str) -> None:
    response = client.request(method, "/v1/query", headers={"X-Secret": "do-not-echo"})
    problem(response, 405)
    assert response.headers["allow"] == "POST"
    assert "do-not-echo" not in response.text
