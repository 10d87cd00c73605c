"""GRPO that learns from positive advantages alone, against GRPO: rftkit/loop.py, 50 steps each.

python benchmarks/positive_advantages.py      # seeds 0, 1, 2; six minutes on one idle thread
"""

from rftkit import SamplingConfig, bootstrap, evaluate, load_task, loop, paired_difference
from rftkit.evaluation import clusters_of

GRPO = loop.token_losses


def positive_alone(logprobs, old, reference, advantages, settings):
    return GRPO(logprobs, old, reference, advantages.clamp(min=0), settings)


def trained(losses, seed: int):
    """top1 of each test row: (at T = 1, greedy)."""
    loop.token_losses = losses
    run = loop.grpo(loop.Settings(seed=seed, steps=50, validate_every=0))
    for record, _ in run:
        if record["step"] == 50:  # the generator still holds the model
            policy = run.gi_frame.f_locals["policy"]
            result = evaluate(policy, TASK, TEST, SamplingConfig(max_new_tokens=64, seed=1000))
            return result.values["top1"], result.greedy["top1"]


TASK = load_task("gene_ranking")
TEST = TASK.rows("test")
CLUSTERS = clusters_of(TEST, TASK)
for seed in (0, 1, 2):
    all_, positive = (trained(losses, seed) for losses in (GRPO, positive_alone))
    for how, ours, theirs in zip(("T = 1", "greedy"), positive, all_):
        gap = paired_difference(ours, theirs, CLUSTERS)
        print(f"seed {seed}, {how:6}", bootstrap(ours, CLUSTERS), f"{gap:+}", flush=True)
