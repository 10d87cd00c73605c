"""The project as a whole: what is pinned, what imports what, what is published."""

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from project_files import ADDRESS, PROJECT, ROOT, canonical, pins, project_files

import rftkit

UNPINNED = {"certifi"}  # constraints.txt says why
WITH_CUDA = ("nvidia-", "triton", "cuda-", "pytorch-triton")  # fixed by torch itself
MODULES = {p: p.read_text(encoding="utf-8") for p in sorted((ROOT / "rftkit").rglob("*.py"))}


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(line) for line in PROJECT["project"]["dependencies"] + sum(extras, [])]


def test_every_requirement_has_a_pin_inside_its_range():
    pinned = pins()
    for needed in requirements():
        assert needed.specifier.contains(pinned.get(canonical(needed.name), "0")), str(needed)


def test_every_installed_dependency_is_pinned_at_its_version():
    """Walk what is installed from the project's own requirements down."""
    pinned, seen, queue, wrong = pins(), set(), requirements(), {}
    while queue:
        requirement = queue.pop()
        name = canonical(requirement.name)
        if (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        if name not in UNPINNED and not name.startswith(WITH_CUDA):
            if Version(found.version).base_version != Version(pinned.get(name, "0")).base_version:
                wrong[name] = f"{found.version}, pinned {pinned.get(name)}"
        if name.startswith("unsloth"):
            continue  # installed alone on a CPU; its full needs belong to a GPU machine
        for needed in map(Requirement, found.requires or []):
            extras = ("", *requirement.extras)
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras):
                queue.append(needed)
    assert len(seen) > 100, "the walk did not reach the dependencies"
    assert wrong == {}


def test_what_is_written_twice_agrees():
    version, unsloth = PROJECT["project"]["version"], pins()["unsloth"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert rftkit.__version__ == version == str(citation["version"])
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    gpu = PROJECT["project"]["optional-dependencies"]["gpu"]
    assert gpu == [f"unsloth=={unsloth}", f"unsloth_zoo=={pins()['unsloth-zoo']}"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][0] == "python" + PROJECT["project"]["requires-python"]


GRADERS = "from rftkit.graders.grader import Grader; [Grader.load(n) for n in ('rank', 'judge')]"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("rftkit", "torch transformers trl peft datasets openai numpy scipy matplotlib pydantic"),
        (f"rftkit.cli; {GRADERS}", "torch transformers trl peft datasets unsloth openai scipy"),
    ],
)
def test_neither_an_import_nor_the_use_of_a_grader_loads_a_heavy_library(code, heavy):
    command = [sys.executable, "-c", f"import {code}; import sys; print(*sys.modules)"]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(heavy.split()) & set(loaded.split()) == set()


def test_imports_run_downward_between_files():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_no_module_is_imported_by_name():
    """A string import would hide an arrow from the import contracts."""
    hidden = [
        f"{path}:{node.lineno}"
        for path, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and re.fullmatch(r"rftkit(\.\w+)+", str(node.value))
    ]
    assert hidden == []


def test_the_package_stays_thin():
    lengths = {path: len(text.splitlines()) for path, text in MODULES.items()}
    assert {path: length for path, length in lengths.items() if length > 400} == {}
    assert sum(lengths.values()) <= 14_580 and len(lengths) <= 72
    assert lengths[ROOT / "rftkit" / "loop.py"] <= 200
    # What a learner reads: the files marked L in the README's tree.
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1]
    marked = [line for line in tree.splitlines() if re.search(r" L  ", line)]
    names = set(re.findall(r"(\w+\.py|signal/)", " ".join(marked)))
    read = [n for p, n in lengths.items() if p.name in names or f"{p.parent.name}/" in names]
    assert len(read) >= 15 and sum(read) <= 4_000


PRIVATE = [
    r"(?<![\w.~-])/(?:work|root|home|Users)/[\w.]",  # a path of one machine
    r"pypi\.org|pythonhosted\.org|npmjs\.org",
    r"(?<![\"'])--(?:extra-)?index-url(?! https://download\.pytorch\.org/whl/cpu[)\s])",
    r"\b(?:hf_|gh[pousr]_)[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    # What opens or installs a notebook's repository, but not this one.
    r"(?:research\.google\.com/github|raw\.githubusercontent\.com|git\+https://github\.com)/"
    rf"(?!{ADDRESS}\b)\w[\w.-]*/[\w-]+",
]


def test_nothing_private_and_no_other_address_is_published():
    for path in project_files():
        text = path.read_bytes().decode("utf-8", "ignore")
        assert [match for match in (re.search(p, text) for p in PRIVATE) if match] == [], path
