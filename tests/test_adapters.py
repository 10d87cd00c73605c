"""An adapter answers alike wherever it is loaded: in memory, in PEFT, in Unsloth, elsewhere."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from unsloth_driver import SFT, measured

from rftkit import RunConfig, load_policy, train
from rftkit.files import fetched_folder
from rftkit.policy import LocalPolicy

pytestmark = pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")


def fetched(name):
    missing = not fetched_folder(name).exists()
    skip = pytest.mark.skipif(missing, reason=f"{name} is not here: `rftkit fetch {name}`")
    return pytest.param(name, marks=[pytest.mark.prove, skip])


@pytest.fixture(scope="module", params=["embedded:mini", fetched("smollm2")])
def found(request, tmp_path_factory):
    """{engine: {where it was loaded: what was measured there}}"""
    folder = tmp_path_factory.mktemp("adapters")
    ours = train(RunConfig(**SFT, model=request.param), folder / "peft", say=print)
    made = {"memory": measured(ours.policy)}
    driver = [sys.executable, Path(__file__).with_name("unsloth_driver.py"), request.param]
    ran = subprocess.run(
        [*driver, folder / "peft", folder / "unsloth"], capture_output=True, text=True
    )
    assert "RESULT" in ran.stdout, ran.stderr[-3000:]
    other = json.loads(ran.stdout.split("RESULT ")[1].splitlines()[0])
    assert other["engine"] == "unsloth"
    made |= {"Unsloth": other["read"], "load_policy in Unsloth": other["loaded"]}
    return {"transformers": made, "unsloth": {"memory": other["own"], **read(folder / "unsloth")}}


def read(run):
    """The run's adapter in plain PEFT, and by its folder."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    plain = measured(LocalPolicy(model.eval(), tokenizer, "plain"))
    return {"PEFT": plain, "load_policy": measured(load_policy(str(run), "transformers"))}


@pytest.mark.parametrize("engine", ["transformers", "unsloth"])
def test_the_others_loader_gives_the_same_logits_answers_and_grades(found, engine):
    memory = found[engine]["memory"]
    assert not np.allclose(memory["adapted"], memory["base"], atol=0.1)
    for place, measure in found[engine].items():
        assert np.allclose(measure["base"], memory["base"], atol=1e-3), place
        assert np.allclose(measure["adapted"], memory["adapted"], atol=1e-3), place
        assert measure["texts"] == memory["texts"] and measure["grades"] == memory["grades"], place
