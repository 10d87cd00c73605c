"""The project as a whole: what is pinned, what is packed, what is imported, what is published."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from project_files import ROOT, address, canonical, foreign_addresses, pins, project_files
from project_files import pyproject as read_pyproject

UNPINNED = {"certifi"}  # constraints.txt says why
WITH_CUDA = ("nvidia-", "triton", "cuda-", "pytorch-triton")  # fixed by torch itself


def requirements() -> list[Requirement]:
    project = read_pyproject()["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in project["dependencies"] + sum(extras, [])]


def text_files() -> list[tuple[str, str]]:
    """(path, text) of every text file of the project."""
    texts = []
    for path in project_files():
        try:
            texts.append((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return texts


# --- dependencies ------------------------------------------------------------------------------


def test_every_requirement_has_a_pin_inside_its_range():
    pinned = pins()
    outside = [
        str(needed)
        for needed in requirements()
        if not needed.specifier.contains(pinned.get(canonical(needed.name), "0"))
    ]
    assert outside == []


def test_every_installed_dependency_is_pinned_at_its_version():
    """Walk what is installed from the project's own requirements down."""
    pinned, seen, queue, wrong = pins(), set(), requirements(), {}
    while queue:
        requirement = queue.pop()
        name = canonical(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        if name not in UNPINNED and not name.startswith(WITH_CUDA):
            pin = pinned.get(name)
            if pin is None or Version(found.version).base_version != Version(pin).base_version:
                wrong[name] = f"{found.version}, pinned {pin}"
        if name.startswith("unsloth"):
            continue  # installed alone on a CPU; its full needs belong to a GPU machine
        for line in found.requires or []:
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in environments):
                queue.append(needed)
    assert len(seen) > 100, "the walk did not reach the dependencies"
    assert wrong == {}


def test_the_two_unsloth_pins_agree_with_the_gpu_extra():
    gpu = read_pyproject()["project"]["optional-dependencies"]["gpu"]
    version = pins()["unsloth"]
    assert gpu == [f"unsloth=={version}", f"unsloth_zoo=={version}"]
    assert pins()["unsloth-zoo"] == version


def test_environment_yml_installs_the_project_and_lists_nothing_twice():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert python == "python" + read_pyproject()["project"]["requires-python"]
    assert pip == "pip" and packages["pip"] == ["-c constraints.txt", "-e .[dev]"]


def test_versions_agree():
    import rftkit

    version = read_pyproject()["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert rftkit.__version__ == version == str(citation["version"])
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- imports -----------------------------------------------------------------------------------


def fresh_python(code: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return answer.stdout


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("rftkit", "torch transformers trl peft datasets openai numpy scipy matplotlib pydantic"),
        ("rftkit.cli", "torch transformers trl peft datasets unsloth openai scipy"),
    ],
)
def test_an_import_loads_no_heavy_library(module, heavy):
    loaded = fresh_python(f"import {module}, sys; print(*sys.modules)").split()
    assert module in loaded
    assert set(heavy.split()) & set(loaded) == set()


def test_imports_run_downward_between_files():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_only_the_face_imports_by_name():
    """A string import would hide an arrow from the import contracts."""
    hidden = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "rftkit").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"rftkit(\.\w+)+", node.value)
    ]
    assert hidden == []


def test_no_file_of_the_package_is_longer_than_400_lines():
    files = [p for p in project_files() if p.suffix == ".py" and ROOT / "rftkit" in p.parents]
    lengths = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    assert sum(lengths.values()) <= 12_500 and len(files) <= 60
    assert lengths["loop.py"] <= 200


def test_what_a_learner_reads_stays_short():
    """The files marked L in the README's tree."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1]
    marked = {
        ROOT / "rftkit" / folder / name
        for line in tree.splitlines()
        if re.search(r" L  ", line)
        for name in re.findall(r"[\w/]+\.py|signal/", line)
        for folder in ("", "graders", "training")
    }
    files = [f for p in marked for f in ([p] if p.is_file() else p.rglob("*.py"))]
    assert len(files) >= 15
    assert sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files) <= 4_000


# --- what is packed and published -----------------------------------------------------------


def test_every_room_is_named_in_pyproject():
    files = [p for p in project_files() if p.suffix == ".py" and ROOT / "rftkit" in p.parents]
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    assert rooms | {"rftkit._datasets"} == set(read_pyproject()["tool"]["setuptools"]["packages"])


def test_datasets_holds_no_python():
    """With an __init__.py it would shadow Hugging Face's `datasets`."""
    assert list((ROOT / "datasets").rglob("*.py")) == []


def test_no_file_is_too_large_for_git():
    assert [p.name for p in project_files() if p.stat().st_size > 8_000_000] == []


# (what it is, pattern, an example). Written so that no pattern matches its own source.
PRIVATE = [
    ("a path of one machine", r"(?<![\w.~-])/(?:work|root|home|Users)/[\w.]", "/home" + "/ann/x"),
    ("a package index", r"pypi\.org|pythonhosted\.org|npmjs\.org", "https://py" + "pi.org/torch"),
    (
        "another index",
        r"(?<![\"'])--(?:extra-)?index-url(?! https://download\.pytorch\.org/whl/cpu[)\s])",
        "pip install --index" + "-url https://example.org torch",
    ),
    ("a hub token", r"\bhf_[A-Za-z0-9]{30,}", "hf" + "_" + "a" * 34),
    ("an API key", r"\bsk-[A-Za-z0-9_-]{20,}", "sk" + "-" + "x" * 30),
    ("a GitHub token", r"\bgh[pousr]_[A-Za-z0-9]{30,}", "gh" + "p_" + "a" * 36),
    (
        "a private key",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
    ),
]


@pytest.mark.parametrize(("what", "pattern", "example"), PRIVATE, ids=[p[0] for p in PRIVATE])
def test_nothing_private_is_published(what, pattern, example):
    assert re.search(pattern, example), "the pattern does not see what it is for"
    assert [name for name, text in text_files() if re.search(pattern, text)] == []


def test_every_link_to_the_repository_agrees_with_pyproject():
    assert {n: foreign_addresses(t) for n, t in text_files() if foreign_addresses(t)} == {}
    other = "https://raw.githubusercontent.com/" + "someone/copy/main/constraints.txt"
    assert foreign_addresses(other) and not foreign_addresses(f"https://github.com/{address()}")
