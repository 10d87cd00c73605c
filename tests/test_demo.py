"""The wheel in an environment of its own, where `rftkit demo` does in the smoke profile all that it
promises; as a slow proof (`make prove`), a fresh checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from project_files import ROOT, copy_project, project_files
from test_genes_cases import packet

from rftkit import Sample, load_task, preset, regrade
from rftkit.demo import SYSTEMS, right_completions
from rftkit.real_cases import load_world
from rftkit.rows import write_rows


def run(words, folder, **more):
    """Run a command as a user would, from a new shell: nothing of this test's Python or make."""
    own = ("PYTHON", "RFTKIT_", "MAKE", "VIRTUAL_ENV")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(own)} | more
    words = [str(word) for word in words]
    answer = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git holds, with the setuptools that is installed here."""
    copy, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    copy_project(copy)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target]
    run(build, copy, PIP_NO_INDEX="1")
    (made,) = target.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The commands of an environment that has this wheel alone. What it depends on is borrowed from
    ours through a .pth file, whose own .pth files (an editable rftkit among them) Python does not
    follow."""
    home = tmp_path_factory.mktemp("home").resolve()
    venv.create(home, with_pip=False)
    inside = {"base": str(home), "platbase": str(home)}
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    packages = Path(sysconfig.get_path("purelib", vars=inside))
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    scripts = Path(sysconfig.get_path("scripts", vars=inside))
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "-qq"]
    run([*pip, "--no-deps", "--no-index", "--ignore-installed", wheel], home)
    return scripts


@pytest.fixture(scope="module")
def demo(scripts, tmp_path_factory):
    """(folder, report, what was printed) of a run with eight made-up cases: two cannot be told."""
    work = tmp_path_factory.mktemp("demo")
    known = [(gene, sorted(terms)[:5]) for gene, terms in load_world().annotation.items()][:6]
    packets = [packet(f"c{n}", gene, terms) for n, (gene, terms) in enumerate(known)]
    packets += [packet("n", "NOTAGENE", known[0][1]), packet("few", known[0][0], ())]
    write_rows(work / "real.jsonl", packets)
    words = ["demo", "--profile", "smoke", "--cases", "real.jsonl"]
    printed = run([scripts / "rftkit", *words], work, HF_HUB_OFFLINE="1")
    folder = work / "runs" / "demo"
    return folder, json.loads((folder / "report.json").read_text()), printed


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT).as_posix() for path in project_files()}
    expected = {name for name in files if name.startswith("rftkit/")}
    expected |= {f"rftkit/_{name}" for name in files if name.startswith("datasets/")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    licenses = {name.split("/")[-1] for name in names if "/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE"}


def test_the_installed_package_uses_its_own_files(scripts, tmp_path):
    code = (
        "import rftkit; from rftkit.files import dataset, embedded_model, MODELS;"
        "print(rftkit.__file__, dataset('gene_ranking') / 'task.json',"
        " embedded_model('mini') / 'config.json', MODELS / 'world.json', sep='\\n')"
    )
    lines = run([scripts / "python", "-c", code], tmp_path).splitlines()
    assert all(scripts.parent in Path(line).resolve().parents for line in lines), lines
    assert len(lines) == 4


def test_the_folder_holds_the_report_and_its_fields(demo):
    folder, report, printed = demo
    assert "RFT large" in printed and "Real published cases: 6 of 8" in printed
    for name in ("report.md", "table.png", "curve.png", "log.jsonl", "samples.jsonl",
                 "config.json", "adapter/adapter_model.safetensors"):  # fmt: skip
        assert (folder / name).stat().st_size > 100, name
    systems = {system["name"]: system for system in report["systems"]}
    assert list(systems) == list(SYSTEMS)
    for system in systems.values():
        assert system["top1"]["low"] <= system["top1"]["mean"] <= system["top1"]["high"]
        assert system["top5"]["mean"] >= system["top1"]["mean"]
        assert "top1" in system["greedy"] and system["n"] == report["n_cases"] == 60
    assert systems["mini base, prompted"]["patterns"]["diagnose first"] == 1
    assert report["training"]["answer_groups_shared_with_eval"] == 0
    assert report["training"]["examples"] == 128 and report["seed"] == 0
    assert report["sha256"]["embedded:mini"] and report["versions"]["torch"]
    assert systems["overlap"]["top1"]["mean"] > 0.2 > systems["random"]["top1"]["mean"]
    assert report["gates"]["mini"] and report["rivals"]["SFT mini"]["best_step"]
    for pair in report["paired"]:
        if pair["metric"] == "top1":
            a, b = (systems[pair[key]]["top1"]["mean"] for key in "ab")
            assert pair["difference"] == pytest.approx(a - b, abs=2e-4)


def test_samples_carry_their_system_and_their_grade(demo):
    folder, report, _ = demo
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    tested = [line for line in lines if "step" not in line]
    assert {line["model"] for line in tested} == set(SYSTEMS)
    rft = [line for line in tested if line["model"] == "RFT mini"]
    assert len(rft) == report["n_cases"] * 3
    assert all(x["grade"] is not None and x["row_id"].startswith("test-") for x in rft)


def test_a_stored_answer_to_any_row_of_the_task_can_be_graded_again(demo):
    folder = demo[0]
    again = regrade(folder, "gene_rank")
    assert again["grader"] and again["n_graded"] == again["n_answers"] > 2_000
    assert again["changed"] == again["swapped"] == 0
    strict = regrade(folder, preset("rank", length=1))
    assert strict["after"] < strict["before"] and strict["changed"] > 0


def test_real_cases_are_counted_by_reason_and_put_to_every_system(demo):
    real = demo[1]["real_cases"]
    assert real["read"] == 8 and real["kept"] == 6 and sum(real["lost"].values()) == 2
    assert [system["name"] for system in real["systems"]] == list(SYSTEMS)
    assert sum(real["splits"].values()) == 6 and len(real["paired"]) == 3


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


def test_a_right_completion_with_half_a_letter_is_not_imitated():
    task = load_task("gene_ranking")
    [row] = task.rows("train")[:1]
    texts = [f'{{"genes": ["{row["reference_gene"]}", "{other}"]}}' for other in ("FXN", "\ufffd")]
    kept = right_completions(task, [row], [[Sample.from_text(text) for text in texts]])
    assert [entry["completion"] for entry in kept] == [f"<think></think>{texts[0]}"]
