"""A run: GRPO (reinforcement) or SFT with LoRA, watched by held-out evaluation.

    run = train(RunConfig(model="embedded:mini", task="gene_ranking"), "runs/first")

What happens in a step of GRPO: `prompts_per_step` rows are drawn, the model gives
`answers_per_prompt` answers to each, the grader scores them, TRL's GRPOTrainer turns each group's
scores into advantages and updates the LoRA. Every `eval_every` steps the held-out rows are
sampled; the adapter that does best THERE is kept, and the run ends when it no longer improves.

TRL trains and PEFT adapts. What is ours: who sees what, the log, the moment to stop.

config.py  RunConfig: every setting, its default, what is refused
run.py     train(): the whole run            watch.py  the log, held-out looks, the best adapter
grpo.py    TRL's GRPOTrainer, its reward function, its rollouts          sft.py  TRL's SFTTrainer

Left out here: the gate before training (signal.py), findings over a log (doctor.py).
"""

from rftkit.training.config import RunConfig
from rftkit.training.run import Run, train

__all__ = ["Run", "RunConfig", "train"]
