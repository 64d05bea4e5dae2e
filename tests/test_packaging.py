"""The shipped files, dependencies, containers and messages of the project."""

import ast
import csv
import hashlib
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from service.server import LAST_RESORT_SECONDS
from service.settings import Settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("model", "indexer", "service", "loci")
WEIGHTS_SHA256 = "de170da2201c0e4a8c0949d79fb8db271b04aae266f8fb4448c663c74c38cb9c"
GPS_IFD = 0x8825
# Work that no module may do when it is imported.
WORK = {
    "print",
    "logging.basicConfig",
    "random.seed",
    "np.random.seed",
    "torch.manual_seed",
    "warnings.simplefilter",
}

SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def calls_at_import(tree: ast.Module) -> set[str]:
    """Names of what a module calls on its own level, for nothing but its effect."""
    alone = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    return {ast.unparse(value.func) for value in alone if isinstance(value, ast.Call)}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_has_sources(package: str) -> None:
    assert any(path.is_relative_to(ROOT / package) for path in SOURCES)


def test_no_module_asserts_or_does_work_when_imported() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert not asserts, path
        assert not WORK & calls_at_import(tree), path


def spoken_strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a module that is not a docstring."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value


def test_libraries_name_fields_and_not_command_line_options() -> None:
    """The command line translates `a_field` to --a-field in one place; Python's users have no options."""
    named = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in ("model", "indexer")
        for line, text in spoken_strings(ast.parse(path.read_text()))
        if re.search(r"(?<![\w<!-])--[a-z]", text)
    ]
    assert not named


def test_every_pip_install_names_this_distribution() -> None:
    """Extras belong to `geniusloci`; in a checkout it is `.`."""
    name = pyproject()["project"]["name"]
    texts = [
        *SOURCES,
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
    wanted = [
        (path.relative_to(ROOT).as_posix(), word.split("[")[0])
        for path in texts
        for line in re.findall(r"pip install ([^`\n]+)", path.read_text())
        for word in re.findall(r"[\w.-]+\[[\w, ]+\]", line)
    ]
    assert {word for _, word in wanted} == {name, "."}, wanted


def test_weights_are_shipped_and_whole() -> None:
    weights = resources.files("model") / "data" / "vgg16-imagenet-fp16.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == WEIGHTS_SHA256


def test_data_patterns_cover_every_data_file() -> None:
    patterns = pyproject()["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        folder = ROOT / package
        shipped = {path for pattern in patterns[package] for path in folder.glob(pattern) if path.is_file()}
        data = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
        assert data == shipped


def requirements() -> Iterator[Requirement]:
    project = pyproject()["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    yield from map(Requirement, [*project["dependencies"], *extras])


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines if not line.startswith("#")]
    assert all(found), "requirements.txt has a line that is neither a pin nor a comment"
    return {canonicalize_name(match[1]): match[2] for match in found if match}


@pytest.mark.parametrize("requirement", list(requirements()), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement: Requirement) -> None:
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)


def test_pins_keep_the_platform_wheels_open() -> None:
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]


def demo_photos(folder: str) -> list[Path]:
    return sorted((ROOT / "loci" / "demo" / folder).glob("*.jpg"))


def test_demo_photos_are_small_and_positioned() -> None:
    photos, queries = demo_photos("photos"), demo_photos("queries")
    assert (len(photos), len(queries)) == (60, 15)
    assert not {path.name for path in photos} & {path.name for path in queries}
    assert sum(path.stat().st_size for path in photos + queries) < 3_200_000
    for path in photos + queries:
        with Image.open(path) as image:
            gps = image.getexif().get_ifd(GPS_IFD)
            assert max(image.size) <= 640
        assert (gps[1], gps[3]) == ("N", "W")
        assert gps[2][:2] == (30, 10)
        assert gps[4][:2] == (98, 5)


def test_demo_truth_names_photos_that_are_there() -> None:
    with (ROOT / "loci" / "demo" / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows] == [path.name for path in demo_photos("queries")]
    known = {path.name for path in demo_photos("photos")}
    for row in rows:
        positives = row["positives"].split(" ")
        assert len(positives) >= 6
        assert set(positives) <= known


def test_dockerfile_copies_what_its_context_has() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for name in " ".join(copied).split():
        assert f"!{name}" in allowed
        assert (ROOT / name).exists()


@pytest.mark.parametrize("name", ["scripts/loci", "scripts/test", "scripts/check", ".ci/run"])
def test_scripts_can_be_run(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111


def compose(name: str = "") -> dict[str, Any]:
    """docker-compose.yml as it is without any variable set: all of it, or one service."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    return found["services"][name] if name else found


SERVICES = sorted(compose()["services"])


def test_the_services_of_the_compose_file() -> None:
    gpu = ["index-gpu", "service-gpu", "service-tls-gpu"]
    cluster = ["index-cluster", "milvus", "ray-head", "ray-worker", "service-replica"]
    assert sorted(["backup", "index", "proxy", "service", "service-tls", *gpu, *cluster]) == SERVICES
    assert "$" not in yaml.safe_dump(compose())


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_limited_and_locked_down(name: str) -> None:
    service = compose(name)
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] == 512
    assert service["cpus"] == 0  # all there are: more than that is refused
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "proxy" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "devices", "pid", "ipc", "user"} & service.keys()
    log = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}
    assert service["logging"] == ({"driver": "none"} if name == "backup" else log)
    runs = name.startswith(("service", "proxy", "ray", "milvus"))
    assert service["restart"] == ("unless-stopped" if runs else "no")
    assert ("network_mode" in service) is not (runs or name == "index-cluster")
    if "cluster" in service.get("profiles", []):
        assert service["networks"] == ["cluster"]
        assert compose()["networks"]["cluster"] == {"internal": True}
    assert all(volume.endswith(":ro") for volume in service["volumes"] if not volume.endswith("/data"))


@pytest.mark.parametrize("name", SERVICES)
def test_only_the_proxy_is_published(name: str) -> None:
    ports = compose(name).get("ports", [])
    if name == "proxy":
        assert ports == ["80:80", "443:443"]
    else:
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert bool(ports) == (name in ("service", "service-gpu"))


@pytest.mark.parametrize("name", [name for name in SERVICES if name.startswith("service")])
def test_service_behind_proxy_needs_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = compose(name)
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)
    settings = Settings.load()
    index = Path("milvus://milvus" if name == "service-replica" else "/data/index")
    assert (settings.host, settings.port, settings.index) == ("0.0.0.0", 8000, index)
    assert settings.decode_threads == 2
    assert settings.insecure is not ("tls" in name)
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > settings.shutdown_seconds + LAST_RESORT_SECONDS
    if "tls" in name:
        assert service["networks"] == {"inside": {"aliases": ["loci"]}}
        assert compose()["networks"]["inside"] == {"internal": True}
        assert (settings.trusted_proxies, settings.allowed_hosts) == (("*",), ("localhost",))


def test_proxy_closes_connections_before_the_service() -> None:
    caddyfile = (ROOT / "deploy" / "Caddyfile").read_text()
    settings = Settings(index=Path("index"))
    times = dict(re.findall(r"(\w+) (\d+)[sm]\b", caddyfile))
    assert f"reverse_proxy loci:{settings.port} " in caddyfile
    assert int(times["keepalive"]) < settings.keep_alive_seconds
    longest = settings.upload_grace_seconds + settings.max_upload_mb * 1000 / settings.min_upload_rate
    assert longest < 60 * int(times["read_body"]) < 60 * int(times["write"])
    assert "./deploy/Caddyfile:/etc/caddy/Caddyfile:ro" in compose("proxy")["volumes"]


def test_the_deployment_guide_names_every_variable_of_the_compose_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    variables = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    guide = (ROOT / "docs" / "deployment.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`|none) \|", guide, re.MULTILINE)
    assert {name: default for name, default in rows if name in variables} == variables
