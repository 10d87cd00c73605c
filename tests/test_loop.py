"""The loop in one file takes the package's steps, learns, and needs no TRL."""

import json
import subprocess
import sys

import pytest

from rftkit.loop import Settings, grpo, mean_token, token_losses
from rftkit.training.config import RunConfig
from rftkit.training.run import train

SETTINGS = Settings(clip=0.2, beta=0.0)


def test_the_loop_takes_the_packages_steps(tmp_path):
    """The same seed: the same first weights, rows and completions, and so the same numbers."""
    size = dict(steps=4, learning_rate=1e-3, seed=1)
    config = RunConfig(
        task="gene_ranking", prompts_per_step=4, answers_per_prompt=4, eval_every=0, gate="off",
        engine="transformers", **size,
    )  # fmt: skip
    run = train(config, tmp_path)
    loop = [record for record, _ in grpo(Settings(prompts=4, group=4, validate_every=0, **size))]
    for ours, theirs in zip(loop, run.log, strict=True):
        for name in ("reward_mean", "completion_tokens", "dead_groups", "truncated"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
        for name in ("grad_norm", "entropy", "kl", "loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
        assert ours["grad_norm"] > 0


def test_the_loop_learns():
    quick = Settings(steps=12, prompts=4, learning_rate=6e-3, validate_every=0)
    records = [record for record, _ in grpo(quick)]
    rewards = [record["reward_mean"] for record in records]
    assert sum(rewards[-4:]) > 2 * sum(rewards[:4])
    assert records[0]["kl"] == 0 < records[-1]["kl"]  # the first step is the base's own


def test_later_updates_of_a_batch_compare_with_the_policy_that_drew_it():
    once, thrice = (
        list(grpo(Settings(steps=2, prompts=2, updates=n, beta=0.0, validate_every=0)))[1][0]
        for n in (1, 3)
    )
    assert once["reward_mean"] == thrice["reward_mean"]  # step 1 only warms up
    assert abs(once["kl"]) < 1e-8 < 1e-6 < thrice["kl"]
    assert thrice["loss"] < once["loss"] - 1e-5  # where the ratio is 1 the loss cannot move


@pytest.mark.parametrize(
    "ratio, advantage, loss, moves",
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # 20 % likelier than at sampling: enough
        (0.5, 2.0, -1.0, True),  # it moved the wrong way
        (0.5, -2.0, 1.6, False),
        (1.5, -2.0, 3.0, True),
        (1.5, 0.0, 0.0, False),  # a dead group
    ],
)
def test_the_clip_stops_what_has_moved_far_enough(ratio, advantage, loss, moves):
    import torch

    logprobs = torch.tensor([[ratio]]).log().requires_grad_()
    old, reference = torch.zeros(1, 1), torch.zeros(1, 1)
    found, _ = token_losses(logprobs, old, reference, torch.tensor([[advantage]]), SETTINGS)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert bool(logprobs.grad) == moves


def test_kl_pulls_back_to_the_reference():
    import torch

    logprobs = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    reference = torch.tensor([[-2.0, -2.0]])
    settings = Settings(beta=0.1)
    losses, kl = token_losses(logprobs, logprobs.detach(), reference, torch.zeros(1, 1), settings)
    mean_token(losses, torch.ones(1, 2, dtype=torch.bool)).backward()
    assert kl.tolist()[0] == pytest.approx([0.3679, 0.7183], abs=1e-4)  # exp(d) - d - 1
    # beta times (log-probability minus the reference's), over two tokens
    assert logprobs.grad.tolist()[0] == pytest.approx([0.05, -0.05], abs=1e-6)


def test_the_command_ends_in_one_object_and_loads_no_trl():
    code = (  # on few rows
        "import runpy, sys; sys.argv = ['loop', '--steps', '1', '--seed', '3', '--json']\n"
        "from rftkit.task import Task; rows = Task.rows\n"
        "Task.rows = lambda task, split: rows(task, split)[:60]\n"
        "runpy.run_module('rftkit.loop', run_name='__main__')\n"
        "assert not {'trl', 'rftkit.training'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found.keys() == {"start", "end", "seconds"}
    assert 0 < found["start"] < 0.3 and 0 < found["end"] < 0.3  # one warm-up step moves nothing
