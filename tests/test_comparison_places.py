"""`rftkit evaluate`: a place or a model that cannot do is found before anything is sampled."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from rftkit import compare as comparison
from rftkit.cli import app
from rftkit.files import UserError
from rftkit.rows import write_rows
from rftkit.task import load_task


@pytest.fixture
def rows(tmp_path):
    write_rows(tmp_path / "rows.jsonl", load_task("gene_ranking").rows("validation")[:3])
    return tmp_path / "rows.jsonl"


@pytest.fixture
def sampled(monkeypatch):
    """What was loaded for sampling."""
    loaded = []
    monkeypatch.setattr(comparison, "load_policy", loaded.append)
    return loaded


def refusal(rows, out, *models):
    named = [word for model in models for word in ("--model", str(model))]
    words = ["evaluate", str(rows), *named, "--grader", "gene_rank", "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and isinstance(result.exception, UserError), result.exception
    return str(result.exception)


def test_an_out_that_is_a_file_is_found_after_sampling(tmp_path, rows, sampled):
    (tmp_path / "a_file").write_text("mine")
    for out in (tmp_path / "a_file", tmp_path / "a_file" / "below"):
        said = refusal(rows, out, "embedded:mini")
        assert said.startswith(f"--out {out}: the report cannot be written there (")
        assert "name another" in said and sampled == []
    assert (tmp_path / "a_file").read_text() == "mine"


@pytest.mark.parametrize("name", ["report.json", "report.md", "table.png", "samples.jsonl"])
def test_a_folder_in_a_reports_place_is_found_after_sampling(tmp_path, rows, sampled, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    said = refusal(rows, tmp_path / "out", "embedded:mini")
    assert f"{name} is a folder" in said and sampled == []


def test_a_name_that_is_too_long_is_a_traceback(tmp_path, rows, sampled):
    said = refusal(rows, tmp_path / ("x" * 300), "embedded:mini")
    assert "File name too long" in said and sampled == []


def test_a_folder_without_the_right_to_write_is_found_after_sampling(
    tmp_path, rows, sampled, monkeypatch
):
    """The system's refusal is planted: tests may run as root, whom no mode bits stop."""

    def refuse(path, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(comparison, "write_text", refuse)
    said = refusal(rows, tmp_path / "out", "embedded:mini")
    assert "cannot be written there (Permission denied)" in said and sampled == []


def test_a_second_models_broken_weights_are_found_after_the_first_one_answered(
    tmp_path, rows, sampled
):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": "embedded:mini", "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    said = refusal(rows, tmp_path / "out", "embedded:mini", adapter)
    assert said.startswith(f"{adapter}: no adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    said = refusal(rows, tmp_path / "out", "embedded:mini", adapter)
    assert said.startswith(f"{adapter / 'adapter_model.safetensors'}: no whole safetensors file")
    (adapter / "adapter_config.json").write_text('{"base_mod')
    said = refusal(rows, tmp_path / "out", "embedded:mini", adapter)
    assert said.startswith(f"{adapter / 'adapter_config.json'}: cannot be read")
    assert sampled == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[]", '{"tra', '{"training": [1]}', "3"])
def test_a_runs_broken_training_record_is_found_after_sampling(tmp_path, rows, sampled, text):
    from safetensors.numpy import save_file

    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    config = {"base_model_name_or_path": "embedded:mini", "peft_type": "LORA"}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, run / "adapter" / "adapter_model.safetensors")
    (run / "training.json").write_text(text)
    said = refusal(rows, tmp_path / "out", "embedded:mini", run)
    assert said.startswith(f"{run / 'training.json'}: cannot be read") and sampled == []
