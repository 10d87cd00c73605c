"""The README's numbers are the recorded ones, and the recorded ones are of what is shipped."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def demo_seeds():
    spec = importlib.util.spec_from_file_location(
        "demo_seeds", ROOT / "benchmarks" / "demo_seeds.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record(demo_seeds):
    return json.loads(demo_seeds.RECORD.read_text(encoding="utf-8"))


def test_the_results_table_is_the_recorded_one(demo_seeds, record):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.partition(demo_seeds.BEGIN)[2].partition(demo_seeds.END)[0]
    assert shown.strip() == demo_seeds.readme_tables(record)


def test_the_results_picture_is_of_another_record(demo_seeds, record):
    from PIL import Image

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({demo_seeds.PICTURE.relative_to(ROOT).as_posix()})" in text
    with Image.open(demo_seeds.PICTURE) as picture:
        assert picture.text["Description"] == demo_seeds.fingerprint(record)


@pytest.mark.parametrize(
    ("overlap", "said"),
    [
        ([0.4, 0.4], "below RFT mini in every seed"),
        ([0.6, 0.6], "above RFT mini in every seed"),
        ([0.6, 0.4], "above RFT mini in 1 of 2 seeds"),
    ],
)
def test_the_place_of_the_overlap_row_is_not_read_from_the_record(demo_seeds, overlap, said):
    runs = [
        {"systems": [{"name": name, "top1": {"mean": value}} for name, value in row]}
        for row in ([("overlap", value), ("RFT mini", 0.5)] for value in overlap)
    ]
    assert said in demo_seeds.overlap_place(runs)


def test_the_record_is_of_the_shipped_data_and_weights(demo_seeds, record):
    from rftkit.task import load_task

    now = demo_seeds.checksums(load_task("gene_ranking"))
    assert record["sha256"] == now
    assert all(run["sha256"] == now for run in record["runs"])
    assert [run["seed"] for run in record["runs"]] == [0, 1, 2]
    assert all(run["profile"] == "full" for run in record["runs"])


def test_what_the_readme_claims_holds_in_every_recorded_seed(record):
    for run in record["runs"]:
        top = {s["name"]: s["top1"]["mean"] for s in run["systems"]}
        assert top["mini base"] < top["large base"] < top["RFT mini"]
        assert top["RFT mini"] >= 1.75 * top["mini base"]
        ahead = {(p["b"], p["metric"]): p["low"] for p in run["paired"] if p["a"] == "RFT mini"}
        for rival in ("large base", "SFT mini", "rejection-sampling SFT mini"):
            assert ahead[rival, "top1"] > 0
        assert run["n_cases"] >= 400 and run["training"]["answer_groups_shared_with_eval"] == 0
        for system in run["systems"]:
            if system["name"] != "random":
                assert system["top5"]["mean"] > system["top1"]["mean"]
