"""The wheel in an environment of its own and, as slow proofs (`make prove`), a fresh checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from project_files import ROOT, copy_project, project_files


def run(words, folder, **more):
    """Run a command as a user would, from a new shell: nothing of this test's Python or make."""
    own = ("PYTHON", "RFTKIT_", "MAKE", "VIRTUAL_ENV")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(own)} | more
    words = [str(word) for word in words]
    answer = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git holds, with the setuptools that is installed here."""
    copy, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    copy_project(copy)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target]
    run(build, copy, PIP_NO_INDEX="1")
    (made,) = target.glob("*.whl")
    return made


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT).as_posix() for path in project_files()}
    expected = {name for name in files if name.startswith("rftkit/")}
    expected |= {f"rftkit/_{name}" for name in files if name.startswith("datasets/")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    licenses = {name.split("/")[-1] for name in names if "/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE"}


@pytest.mark.timeout(1800)
def test_the_installed_package_uses_its_own_files_and_runs_the_demo(wheel, tmp_path):
    """What it depends on is borrowed from this environment through a .pth file, whose own .pth
    files (an editable rftkit among them) Python does not follow."""
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    venv.create(home, with_pip=False)
    inside = {"base": str(home), "platbase": str(home)}
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    packages = Path(sysconfig.get_path("purelib", vars=inside))
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    scripts = Path(sysconfig.get_path("scripts", vars=inside))
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "-qq"]
    run([*pip, "--no-deps", "--no-index", "--ignore-installed", wheel], home)
    code = (
        "import rftkit; from rftkit.files import dataset, embedded_model, MODELS;"
        "print(rftkit.__file__, dataset('gene_ranking') / 'task.json',"
        " embedded_model('mini') / 'config.json', MODELS / 'world.json', sep='\\n')"
    )
    lines = run([scripts / "python", "-c", code], work).splitlines()
    assert all(home.resolve() in Path(line).resolve().parents for line in lines), lines
    run([scripts / "rftkit", "demo", "--profile", "smoke"], work, HF_HUB_OFFLINE="1")
    assert (work / "runs" / "demo" / "report.json").is_file()


@pytest.mark.prove
def test_make_demo_and_make_test_install_what_they_need_once(tmp_path):
    copy_project(tmp_path)
    run(["make", "demo", "ARGS=--profile smoke"], tmp_path)
    assert (tmp_path / "runs" / "demo" / "report.json").is_file()
    assert not (tmp_path / ".venv" / "bin" / "pytest").exists(), "the demo needs no test tools"
    some_tests = ["make", "test", "ARGS=-k every_requirement"]
    output = run(some_tests, tmp_path)
    assert "installing" in output and " passed" in output.splitlines()[-1]
    assert "installing" not in run(some_tests, tmp_path)
    with open(tmp_path / "constraints.txt", "a") as file:
        file.write("# another pin\n")
    assert "installing" in run(["make", "lab", "ARGS=--version"], tmp_path)
