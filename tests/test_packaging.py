"""The wheel: built, installed into an environment of its own, used in an empty folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from project_files import ROOT, project_files


def run(words, folder, **more):
    """Run a command as a user would: nothing of this process's Python settings, no network."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RFTKIT_"))}
    clean |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"} | more
    return subprocess.run(
        [str(word) for word in words], cwd=folder, env=clean, capture_output=True, text=True
    )


def build(kind, source, target):
    """Build with the setuptools that is installed here: no network, no environment of its own."""
    answer = run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", target], source
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    (made,) = [p for p in target.iterdir() if p.suffix == (".whl" if kind == "wheel" else ".gz")]
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what git holds, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    for path in project_files():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin/ of a bare environment with the wheel in it.

    What the wheel depends on is borrowed from this environment through a .pth file, whose own .pth
    files (an editable rftkit among them) Python does not follow.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    inside = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", vars=inside))
    borrowed = "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (packages / "borrowed.pth").write_text(borrowed + "\n")
    scripts = Path(sysconfig.get_path("scripts", vars=inside))
    answer = run(
        [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "-qq", "--no-deps",
         "--no-index", "--ignore-installed", wheel],
        home,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return scripts


def test_a_data_file_is_left_out_of_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for path in project_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("datasets/"):
            expected.add("rftkit/_" + name)
        elif name.startswith("rftkit/"):
            expected.add(name)
    assert "rftkit/_datasets/gene_ranking/task.json" in expected
    assert any(name.startswith("rftkit/embedded/models/mini/") for name in expected)
    assert sorted(expected - names) == []


def test_something_else_comes_along_in_the_wheel(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rftkit"}
    licenses = [n for n in zipfile.ZipFile(wheel).namelist() if "/licenses/" in n]
    assert sorted(name.split("/")[-1] for name in licenses) == ["LICENSE", "NOTICE"]


def test_the_sdist_builds_another_wheel(checkout, wheel, tmp_path):
    archive = build("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert contents(build("wheel", source, tmp_path / "wheel")) == contents(wheel)


def contents(wheel):
    """name -> digest of each file; RECORD lists them, so it is left out."""
    with zipfile.ZipFile(wheel) as packed:
        return {
            name: hashlib.sha256(packed.read(name)).hexdigest()
            for name in packed.namelist()
            if not name.endswith("/RECORD")
        }


def test_the_installed_command_does_not_start_in_an_empty_folder(installed, tmp_path):
    answer = run([installed / "rftkit", "--help"], tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "check" in answer.stdout and "Reinforcement Fine-Tuning" in answer.stdout


def test_the_installed_package_uses_the_checkouts_files(installed, tmp_path):
    code = (
        "import rftkit; from rftkit.files import dataset;"
        "from rftkit.embedded import embedded_model;"
        "print(rftkit.__file__, dataset('gene_ranking') / 'task.json',"
        " embedded_model('mini') / 'config.json', sep='\\n')"
    )
    answer = run([installed / "python", "-c", code], tmp_path)
    assert answer.returncode == 0, answer.stderr
    environment = installed.parent.resolve()
    for line in answer.stdout.splitlines():
        assert Path(line).is_file() and environment in Path(line).resolve().parents, line


@pytest.mark.timeout(900)
def test_the_installed_demo_fails_in_an_empty_folder(installed, tmp_path):
    answer = run([installed / "rftkit", "demo", "--profile", "smoke"], tmp_path)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert (tmp_path / "runs" / "demo" / "report.json").is_file()
