"""`rftkit demo` in the smoke profile: everything that it promises is there and agrees."""

import json

import pytest
from test_genes_cases import packet

from rftkit import preset, regrade
from rftkit.console import Reporter
from rftkit.demo import SYSTEMS, Demo
from rftkit.real_cases import load_world
from rftkit.rows import write_rows


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, report) of a run with eight made-up cases: two cannot be told."""
    folder = tmp_path_factory.mktemp("demo")
    known = [(gene, sorted(terms)[:5]) for gene, terms in load_world().annotation.items()][:6]
    packets = [packet(f"c{n}", gene, terms) for n, (gene, terms) in enumerate(known)]
    packets += [packet("n", "NOTAGENE", known[0][1]), packet("few", known[0][0], ())]
    write_rows(folder / "real.jsonl", packets)
    demo = Demo("smoke", cases=folder / "real.jsonl", out=folder / "r")
    return demo.out, demo.run(Reporter(quiet=True))


def test_the_folder_holds_the_report_and_its_fields(demo):
    folder, report = demo
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
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
    folder, report = demo
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    tested = [line for line in lines if "step" not in line]
    assert {line["model"] for line in tested} == set(SYSTEMS)
    rft = [line for line in tested if line["model"] == "RFT mini"]
    assert len(rft) == report["n_cases"] * 3
    assert all(x["grade"] is not None and x["row_id"].startswith("test-") for x in rft)


def test_a_stored_answer_to_any_row_of_the_task_can_be_graded_again(demo):
    folder, _ = demo
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
