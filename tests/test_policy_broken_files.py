"""Model and adapter folders that are broken: the file is named before anything is loaded."""

from __future__ import annotations

import json
import shutil

import pytest

from rftkit.files import UserError, embedded_model
from rftkit.policy import check_weights, load_policy, model_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole adapter for embedded:mini."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("whole") / "adapter"
    policy = load_policy("embedded:mini")
    model = get_peft_model(policy.model, LoraConfig(r=2, target_modules="all-linear"))
    model.peft_config["default"].base_model_name_or_path = "embedded:mini"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path, whole):
    return shutil.copytree(whole, tmp_path / "run" / "adapter")


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def change_config(adapter, **values):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_weights_that_were_cut_short_are_a_traceback(adapter, size):
    file = adapter / "adapter_model.safetensors"
    cut(file, size)
    for load in (load_policy, check_weights):
        with pytest.raises(UserError, match="no whole safetensors file") as refused:
            load(str(adapter))
        assert str(refused.value).startswith(f"{file}: ")


def test_missing_weights_are_looked_for_on_the_hub(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    for model in (adapter, adapter.parent):
        with pytest.raises(UserError, match="adapter: no adapter_model.safetensors, expected"):
            load_policy(str(model))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"peft_type": "LO', "cannot be read"),
        ("", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("[]", 'no "base_model_name_or_path"'),
        ("{}", 'no "base_model_name_or_path"'),
        ('{"base_model_name_or_path": null}', 'no "base_model_name_or_path"'),
        ('{"base_model_name_or_path": ["embedded:mini"]}', 'no "base_model_name_or_path"'),
    ],
)
def test_a_broken_adapter_config_is_a_traceback(adapter, text, said):
    file = adapter / "adapter_config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refused:
        model_folder(str(adapter))
    assert str(refused.value).startswith(f"{file}: {said}")


def test_an_adapter_that_is_its_own_base_is_followed_for_ever(adapter):
    for base in (adapter, adapter.parent):
        change_config(adapter, base_model_name_or_path=str(base))
        with pytest.raises(UserError, match="is the adapter itself"):
            model_folder(str(adapter.parent))


@pytest.mark.parametrize(
    "values",
    [{"r": 4}, {"peft_type": "NO_SUCH"}, {"peft_type": None}, {"target_modules": ["no_such"]},
     {"r": "two"}],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_a_traceback(adapter, values):
    change_config(adapter, **values)
    with pytest.raises(UserError, match="the adapter could not be loaded") as refused:
        load_policy(str(adapter))
    assert str(refused.value).startswith(f"{adapter}: ") and "adapter_config" in str(refused.value)


def test_a_models_own_weights_that_were_cut_short_are_a_traceback(tmp_path):
    model = shutil.copytree(embedded_model("mini"), tmp_path / "model")
    cut(model / "model.safetensors", 1000)
    with pytest.raises(UserError, match="model.safetensors: no whole safetensors file"):
        load_policy(str(model))


def test_a_whole_adapter_is_refused(adapter):
    check_weights(adapter)
    policy = load_policy(str(adapter.parent))
    assert policy.model.peft_config["default"].r == 2
