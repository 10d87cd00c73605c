"""The wheel: built, installed into an environment of its own, used in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from project_files import ROOT, project_files


def run(words, folder):
    """Run a command as a user would: nothing of this process's Python settings, no network."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RFTKIT_"))}
    answer = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=clean | {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git holds, with the setuptools that is installed here."""
    copy, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for path in project_files():
        place = copy / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target], copy)
    (made,) = target.glob("*.whl")
    return made


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
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    scripts = Path(sysconfig.get_path("scripts", vars=inside))
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "-qq"]
    run([*pip, "--no-deps", "--no-index", "--ignore-installed", wheel], home)
    return scripts


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for path in project_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("datasets/"):
            expected.add("rftkit/_" + name)
        elif name.startswith("rftkit/"):
            expected.add(name)
    assert "rftkit/_datasets/gene_ranking/task.json" in expected
    assert "rftkit/models/mini/model.safetensors" in expected
    assert {name for name in names if ".dist-info/" not in name} == expected
    licenses = {name.split("/")[-1] for name in names if "/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE"}


@pytest.mark.timeout(1800)
def test_the_installed_package_uses_its_own_files_and_runs_the_demo(installed, tmp_path):
    code = (
        "import rftkit; from rftkit.files import dataset, embedded_model, MODELS;"
        "print(rftkit.__file__, dataset('gene_ranking') / 'task.json',"
        " embedded_model('mini') / 'config.json', MODELS / 'world.json', sep='\\n')"
    )
    lines = run([installed / "python", "-c", code], tmp_path).splitlines()
    environment = installed.parent.resolve()
    assert all(environment in Path(line).resolve().parents for line in lines), lines
    run([installed / "rftkit", "demo", "--profile", "smoke"], tmp_path)
    assert (tmp_path / "runs" / "demo" / "report.json").is_file()
