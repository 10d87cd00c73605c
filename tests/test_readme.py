"""The published numbers are the recorded ones, and the recorded ones are of what is shipped."""

import json
from pathlib import Path

import demo_seeds
import gpu
import pytest
import real_model
import real_thinking
import shapes
import step_time
from typer.testing import CliRunner

from rftkit.cli import app
from rftkit.console import validation_text
from rftkit.task import load_task

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def record():
    return json.loads(demo_seeds.RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def speed():
    return json.loads(step_time.RECORD.read_text(encoding="utf-8"))


def test_the_pages_show_the_recorded_tables_and_picture(record, speed):
    from PIL import Image

    assert demo_seeds.BLOCK.read() == demo_seeds.results_tables(record)
    assert demo_seeds.SUMMARY.read() == demo_seeds.summary_table(record)
    assert step_time.BLOCK.read() == step_time.speed_table(speed)
    assert real_model.README.read() == real_model.readme_table()
    assert shapes.PAGE.read() == shapes.shapes_table()
    measured = json.loads(gpu.RECORD.read_text("utf-8")) if gpu.RECORD.exists() else {}
    assert gpu.BLOCK.read() == gpu.gpu_table(measured)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({demo_seeds.PICTURE.relative_to(ROOT).as_posix()})" in text
    with Image.open(demo_seeds.PICTURE) as picture:
        assert picture.text["Description"] == demo_seeds.fingerprint(record)


def test_demo_real_shows_what_was_recorded_of_the_genes():
    genes = real_model.RECORDS / "gene_candidates"
    page = real_thinking.page(json.loads(genes.with_suffix(".json").read_text("utf-8")))
    assert genes.with_suffix(".md").read_text("utf-8") == page
    result = CliRunner().invoke(app, ["demo", "--real"])
    assert result.exit_code == 0 and result.stdout.strip() == page.strip()


def test_the_readme_prints_the_lines_and_seconds_of_the_record(record):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    validations = [line for line in record["runs"][0]["log"] if "validation" in line]
    for line in validations[:5]:
        found = line["validation"]
        share = found["patterns"]["diagnose first"]
        shown = f"  step {line['step']}, {validation_text(found)}, {share:.0%} diagnose first\n"
        assert shown in text
    assert "{:.0f}, {:.0f} and {:.0f} s".format(*(run["seconds"] for run in record["runs"])) in text


def test_the_recorded_speed_is_what_was_promised(speed):
    lengths = speed["ratios"]["lengths"].items()
    median = {n: {w: r["median"] for w, r in found["ratios"].items()} for n, found in lengths}
    assert median["demo"]["ratio_to_trl_defaults"] <= 0.33
    assert median["demo"]["ratio_to_trl"] <= 0.5
    assert median["300+60"]["ratio_to_trl"] <= 0.35
    assert median["demo"]["ratio_to_floor"] <= 1.15
    quarters = speed["curves"]["quarters"]
    for way in quarters:  # the same learning curve
        for ours, theirs in zip(quarters["rftkit"], quarters[way], strict=True):
            assert ours["low"] <= theirs["high"] and theirs["low"] <= ours["high"], way
    assert all(q[-1]["low"] > q[0]["high"] for q in quarters.values()), "nobody learned"


def test_the_record_is_of_the_shipped_data_and_weights(record):
    sums = demo_seeds.checksums(load_task("gene_ranking"))
    assert all(part["sha256"] == sums for part in (record, *record["runs"]))
    assert [run["seed"] for run in record["runs"]] == [0, 1, 2]


def test_the_tables_show_greedy_pairs_kept_steps_and_pass_at_8(record):
    tables, summary = demo_seeds.results_tables(record), demo_seeds.summary_table(record)
    for run in record["runs"]:
        assert tables.count("| greedy top1 |") == sum(
            "greedy" in p["metric"] for p in run["paired"]
        )
        base = demo_seeds.system_of(run, "mini base")
        assert base["top1"]["mean"] < base["pass@8"]["mean"]
    steps = ", ".join(str(run["training"]["best"]["step"]) for run in record["runs"])
    (row,) = (line for line in summary.splitlines() if line.startswith("| RFT mini |"))
    assert f"step {steps} |" in row and summary.count("0.515 to 0.561") == 2


def test_what_the_readme_claims_holds_in_every_recorded_seed(record):
    for run in record["runs"]:
        top = {s["name"]: s["top1"]["mean"] for s in run["systems"]}
        assert top["mini base"] < top["large base"] < top["RFT mini"]
        assert top["RFT mini"] >= 1.75 * top["mini base"]
        ahead = {(p["b"], p["metric"]): p["low"] for p in run["paired"] if p["a"] == "RFT mini"}
        for rival in ("large base", "SFT mini", "rejection-sampling SFT mini"):
            assert ahead[rival, "top1"] > 0
        assert run["n_cases"] >= 400 and run["training"]["answer_groups_shared_with_eval"] == 0
