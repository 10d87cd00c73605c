"""A run: GRPO (reinforcement) or SFT with LoRA, watched by held-out evaluation.

    run = train(RunConfig(model="embedded:mini", task="gene_ranking"), "runs/first")

What happens in a step of GRPO: `prompts_per_step` rows are drawn, the model gives
`answers_per_prompt` answers to each, the grader scores them, TRL's GRPOTrainer turns each group's
scores into advantages and updates the LoRA. Every `eval_every` steps the held-out rows are
sampled; the adapter that does best THERE is kept, and the run ends when it no longer improves.
The same call on the same folder goes on where a run was stopped or killed.

TRL trains and PEFT adapts. What is ours: who sees what, the log, the moment to stop, and that
nothing is lost.

Read in this order:
1. config.py       RunConfig: every setting, its unit and default, what is refused
2. run.py          train(): the whole run, from the config to the best adapter
3. grpo.py         TRL's GRPOTrainer: prompts, rollouts, reward;   sft.py  TRL's SFTTrainer
4. steps.py        what happens around each step: record, look, watch, save
5. heldout.py      looks at held-out rows: best three, when to stop, reward and task parting
Then what the rest stands on:
   plan.py         batches derived, with reasons      record.py       the log and who hears it
   watchdogs.py    what must not go on unseen         gate.py         before step 1 (signal.py)
   checkpoints.py  whole or not there                 folder.py       what a run folder holds
   command_line.py `rftkit train`, `rftkit runs`   reward_model.py  a trained grader

Left out here: findings over a log (doctor.py), the live view (dashboard.py).
"""

from rftkit.training.config import RunConfig
from rftkit.training.gate import GateSaysFix
from rftkit.training.plan import Plan, make_plan
from rftkit.training.run import Run, load_run, train
from rftkit.training.steps import Interrupted
from rftkit.training.watchdogs import TrainingStopped

__all__ = [
    "GateSaysFix",
    "Interrupted",
    "Plan",
    "Run",
    "RunConfig",
    "TrainingStopped",
    "load_run",
    "make_plan",
    "train",
]
