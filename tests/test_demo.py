"""`rftkit demo` in the smoke profile: everything that it promises is there and agrees."""

import json
import subprocess
import sys

import pytest

from rftkit.demo import SYSTEMS, as_samples, overlap, overlap_sentence, report_text
from rftkit.evaluation import measure
from rftkit.task import load_task

CASE = {
    "messages": [{"role": "user", "content": "-"}],
    "case_id": "made-up-1",
    "present": [],
    "absent": [],
    "sex": "male",
    "onset": "Infantile onset",
}


@pytest.fixture(scope="module")
def cases_file(tmp_path_factory):
    """Rows as `rftkit cases` writes them, made up: two of the world's genes, one unknown."""
    from rftkit.rows import write_rows
    from tools.medical_school.world import build_world

    world = build_world()
    rows = []
    for number, disease in enumerate(world.diseases[:6]):
        present = [{"id": world.term_ids[t], "label": ""} for t in list(disease.frequency)[:5]]
        known = {"reference_gene": disease.gene, "case_id": f"c{number}", "present": present}
        rows.append(CASE | known)
    rows.append(CASE | {"reference_gene": "NOTAGENE", "case_id": "n", "present": present})
    rows.append(CASE | {"reference_gene": world.diseases[0].gene, "case_id": "few"})
    path = tmp_path_factory.mktemp("cases") / "real.jsonl"
    write_rows(path, rows)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory, cases_file):
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "rftkit.cli", "demo", "--profile", "smoke", "--json", "--out", "r",
         "--cases", str(cases_file)],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "r", json.loads(done.stdout), done.stderr


def test_demo_prints_one_object_and_the_same_stands_in_the_folder(demo):
    folder, printed, _ = demo
    assert json.loads((folder / "report.json").read_text()) == printed


def test_demo_writes_every_file_it_promises(demo):
    folder, _, _ = demo
    for name in ("report.json", "report.md", "table.png", "curve.png", "log.jsonl",
                 "samples.jsonl", "events.jsonl", "config.json"):  # fmt: skip
        assert (folder / name).stat().st_size > 100, name
    assert (folder / "table.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


def test_report_has_the_fields_of_the_interface(demo):
    _, report, _ = demo
    assert [s["name"] for s in report["systems"]] == list(SYSTEMS)
    for system in report["systems"]:
        assert {"mean", "low", "high"} == system["top1"].keys()
        assert system["top1"]["low"] <= system["top1"]["mean"] <= system["top1"]["high"]
        assert system["top5"]["mean"] >= system["top1"]["mean"]
        assert "top1" in system["greedy"] and system["n"] == report["n_cases"]
    by_name = {s["name"]: s for s in report["systems"]}
    for base in ("mini base", "large base"):
        assert by_name[base]["pass@8"]["mean"] >= by_name[base]["top1"]["mean"]
    assert {"a", "b", "metric", "difference", "low", "high"} <= report["paired"][0].keys()
    training = report["training"]
    assert training["answer_groups_shared_with_eval"] == 0 and training["examples"] == 128
    assert training["peak_rss_mb"] is None or training["peak_rss_mb"] < 3_000
    assert report["sha256"]["embedded:mini"] and report["versions"]["torch"]
    assert report["gates"]["mini"]


def test_paired_differences_are_those_of_the_table(demo):
    _, report, _ = demo
    means = {s["name"]: s["top1"]["mean"] for s in report["systems"]}
    for pair in report["paired"]:
        if pair["metric"] == "top1":
            assert pair["difference"] == pytest.approx(
                means[pair["a"]] - means[pair["b"]], abs=2e-4
            )


def test_demo_shows_a_case_without_its_answer(demo):
    _, _, said = demo
    shown = next(line for line in said.splitlines() if line.strip().startswith("user:"))
    row = load_task("gene_ranking").rows("train")[0]
    assert row["messages"][0]["content"] in shown
    assert row["reference_gene"] not in shown


def test_samples_carry_their_system_and_their_grade(demo):
    folder, report, _ = demo
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    tested = [line for line in lines if "step" not in line]
    assert {line["model"] for line in tested} == set(SYSTEMS)
    rft = [x for x in tested if x["model"] == "RFT mini"]
    assert len(rft) == report["n_cases"] * 3
    assert all(x["grade"] is not None and x["row_id"].startswith("test-") for x in rft)


def test_report_text_says_what_was_added_and_what_was_not(demo):
    _, report, _ = demo
    text = report_text(report)
    assert "What RFT added" in text and "What it did not add: knowledge" in text
    assert "overlap row" in text and "17.7" in text
    top = {system["name"]: system["top1"]["mean"] for system in report["systems"]}
    assert overlap_sentence(top["overlap"], top["RFT mini"]) in text


@pytest.mark.parametrize(
    ("found", "place"), [(0.407, "below RFT"), (0.6, "above RFT"), (0.4641, "level with RFT")]
)
def test_where_the_overlap_row_stands_is_not_derived_from_the_numbers(found, place):
    said = overlap_sentence(found, 0.464)
    assert place in said and "no rival" in said
    assert [word for word in ("below", "above", "level") if word in said] == [place.split()[0]]


def test_real_cases_are_counted_by_reason_and_put_to_every_system(demo):
    _, report, _ = demo
    real = report["real_cases"]
    assert real["read"] == 8 and real["kept"] == 6 and sum(real["lost"].values()) == 2
    assert [s["name"] for s in real["systems"]] == list(SYSTEMS)
    assert sum(real["splits"].values()) == 6


def test_unknown_profile_is_refused_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rftkit.cli", "demo", "--profile", "huge"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "huge" in done.stderr and "Traceback" not in done.stderr


def test_overlap_reads_the_annotation_and_beats_a_guess():
    task = load_task("gene_ranking")
    rows = task.rows("validation")[:60]
    found = measure("overlap", task, rows, as_samples(overlap()(rows)))
    assert found.values["top1"].mean() > 0.2
