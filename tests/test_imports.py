"""Imports go one way, in the order that docs/architecture.md shows for packages and rooms."""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PICTURES = {"": "Packages", "indexer": "Rooms of indexer", "service": "Rooms of service"}
MOST_FILES = 16
"""In one folder of source."""

Arrows = dict[str, set[str]]


def floors(heading: str) -> dict[str, int]:
    """The floor of each box in the picture below a heading; the ground is 0."""
    picture = re.search(rf"(?m)^#+ {heading}\n[^#]*?```\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    assert picture, f"docs/architecture.md has no picture below the heading {heading!r}"
    lines = picture[1].strip().splitlines()
    return {box: floor for floor, line in enumerate(reversed(lines)) for box in line.split()}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in names]
        else:
            continue
        yield from (name for name in names if name in modules)


def module_arrows() -> Arrows:
    packages = floors(PICTURES[""])
    modules = {
        module_name(path): path for package in packages for path in sorted((ROOT / package).rglob("*.py"))
    }
    return {name: set(imported(path, modules)) - {name} for name, path in modules.items()}


def box_of(module: str, package: str) -> str:
    """The package of a module, or its room within `package`; empty outside of it and for its __init__."""
    parts = module.split(".")
    if not package:
        return parts[0]
    return parts[1] if parts[0] == package and len(parts) > 1 else ""


def box_arrows(package: str) -> Arrows:
    arrows: Arrows = {}
    for module, others in module_arrows().items():
        box = box_of(module, package)
        if box:
            arrows.setdefault(box, set()).update({box_of(other, package) for other in others} - {box, ""})
    return arrows


@pytest.mark.parametrize(("package", "heading"), PICTURES.items(), ids=PICTURES.values())
def test_imports_only_lower_floors(package: str, heading: str) -> None:
    picture, arrows = floors(heading), box_arrows(package)
    assert set(picture) == set(arrows)
    wrong = [
        f"{box} -> {other}"
        for box, others in arrows.items()
        for other in sorted(others)
        if picture[other] >= picture[box]
    ]
    assert not wrong


def test_modules_have_no_import_circle() -> None:
    TopologicalSorter(module_arrows()).prepare()  # raises CycleError


def test_no_folder_has_too_many_files() -> None:
    for package in floors(PICTURES[""]):
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]:
            files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= MOST_FILES, folder


def test_every_room_has_a_docstring() -> None:
    for package in floors(PICTURES[""]):
        for file in (ROOT / package).glob("*/__init__.py"):
            assert ast.get_docstring(ast.parse(file.read_text())), file
