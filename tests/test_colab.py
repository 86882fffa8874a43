"""Colab as it was published (tests/data/colab-packages.txt): the setup cell brings what is missing there.

Nothing here was run on Colab itself.
"""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYTHON = "3.12"
MARKERS = {"python_version": PYTHON, "python_full_version": "3.12.11", "sys_platform": "linux"}
MARKERS |= {"platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython"}
FIRST = ROOT / "book" / "chapters" / "00_welcome.ipynb"


def colab() -> dict[str, Version]:
    lines = (ROOT / "tests" / "data" / "colab-packages.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def core() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [Requirement(text) for text in project["dependencies"]]


def installed_by_setup() -> list[str]:
    source = next(c for c in nbformat.read(FIRST, 4).cells if c.cell_type == "code").source
    line = re.search(r"%pip install (.*)", source)[1].split()
    return [canonicalize_name(word) for word in line if not word.startswith(("-", "/"))]


def asked_by(name: str) -> list[Requirement]:
    """What a package needs on Colab, by the version that constraints.txt names."""
    found = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    return [r for r in found if r.marker is None or r.marker.evaluate(MARKERS | {"extra": ""})]


def test_the_list_is_a_whole_one():
    packages = colab()
    assert len(packages) > 600
    assert packages["ipywidgets"] == Version("7.7.1")
    assert packages["torch"].base_version == "2.11.0"


def test_python_of_colab_is_one_of_ours():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{PYTHON}.0")


@pytest.mark.parametrize("requirement", core(), ids=lambda r: r.name)
def test_a_floor_is_met_by_colab_or_the_setup_cell_brings_the_package(requirement):
    name = canonicalize_name(requirement.name)
    version = colab().get(name)
    if version is None:
        assert name in installed_by_setup(), f"{name} is not on Colab, and --no-deps does not bring it"
        version = constraints()[name]
    assert requirement.specifier.contains(version.base_version), f"{requirement}: Colab has {version}"


@pytest.mark.parametrize("name", installed_by_setup())
def test_no_deps_misses_nothing_that_the_packages_of_the_setup_cell_need(name):
    there, brought = colab(), installed_by_setup()
    for requirement in asked_by(name):
        needed = canonicalize_name(requirement.name)
        version = constraints()[needed] if needed in brought else there.get(needed)
        assert version is not None, (
            f"{name} needs {needed}: not on Colab, and the setup cell does not bring it"
        )
        assert requirement.specifier.contains(version.base_version), f"{name} needs {requirement}"


def test_the_setup_cell_brings_neither_torch_nor_numpy_nor_anything_that_is_newer_there():
    brought = installed_by_setup()
    assert not {"torch", "torchvision", "numpy", "pandas", "scipy"} & set(brought)
    wanted = {canonicalize_name(r.name) for r in core()}
    wanted |= {canonicalize_name(r.name) for name in brought for r in asked_by(name)}
    assert set(brought) <= wanted | set(brought) - set(colab()), "something is brought that nothing needs"


def test_the_library_imports_nothing_but_its_dependencies():
    """A package that only happens to be here would be missing on Colab."""
    allowed = {canonicalize_name(r.name) for r in core()}
    modules = {"PIL": "pillow", "sklearn": "scikit-learn", "skimage": "scikit-image", "IPython": "ipython"}
    extras = {"optuna", "tensorboard"}  # of the extra `search`; asked for with a sentence
    brings = {"filelock", "requests", "ipython", "psutil"}  # torch, pooch, ipywidgets, accelerate need them
    found = set()
    for path in (ROOT / "mammomil").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    outside = {canonicalize_name(modules.get(n, n)) for n in found - set(sys.stdlib_module_names)}
    assert outside - {"mammomil"} <= allowed | extras | brings


@pytest.mark.parametrize("path", sorted((ROOT / "book" / "chapters").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_chapter_asks_colab_for_a_gpu(path):
    metadata = nbformat.read(path, 4).metadata
    assert metadata["accelerator"] == "GPU"
    assert metadata["colab"]["gpuType"] == "T4"
