"""What several test files use: the embedded mini, the task that it knows, the command line."""

import gc
import sys

import pytest

from rftkit import cli
from rftkit.policy import load_policy
from rftkit.task import load_task


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """What is imported by now stays: Transformers collects garbage after each training, and would
    look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def mini():
    return load_policy("embedded:mini")


@pytest.fixture(scope="module")
def genes():
    """(the task, its training rows)"""
    task = load_task("gene_ranking")
    return task, task.rows("train")


@pytest.fixture(scope="module")
def adapted(mini):
    """The mini in fp32 under a LoRA adapter that is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(mini.model.float(), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line as the console script does: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rftkit", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call
