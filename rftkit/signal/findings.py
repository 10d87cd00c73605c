"""The names of the findings with what to turn, the thresholds, and what collects findings.

A share is bad when its whole 95 % interval lies beyond the threshold, and open when the threshold
lies inside it.
"""

from __future__ import annotations

from rftkit.evaluation import Interval
from rftkit.signal.estimators import more_rows
from rftkit.signal.record import Finding, Signal

# Quoted: Axolotl, docs/training_stability (zero-spread groups under 0.8, clipped under 0.3).
MOST_DEAD, MOST_CUT = 0.8, 0.3
SOME_CUT = 0.05  # share of cut answers from which the 95 % quantile of the lengths is unknown
MOST_UNREADABLE = 0.5  # ours: beyond half, most of what the model hears is about form
LOW_TEMPERATURE = 0.5  # ours: below it most answers are the likeliest one and its neighbours
HOPELESS = 20  # ours, times the gate's budget: who would need more samples needs another task
FEW_ROWS = 24  # OpenAI's guide: start with several dozen rows; two are the fewest that may mean
MOST_LOST = 0.05  # as in training, where more grades lost in one step end the run

# Causes before what follows from them: each name, and what to turn.
FINDINGS = {
    "no verifiable answer": "ask for something that a rule can check (which of these facts does "
    "the text state? what is the total?), or take another method: SFT on good examples, or "
    "preference learning where people can only say which of two answers is better",
    "chat template broken": "tokenizer.chat_template: take the template of this very model",
    "end token missing": "tokenizer.eos_token or generation_config.eos_token_id: name the token "
    "that closes an answer in the chat template",
    "grader fails": "grader: `rftkit grade` on one of the shown samples says what failed",
    "inverted reward": "grader: turn its sign (1 - x), its operation (eq, ne) or the formula round",
    "reference cannot score": "grader or rows: mend them until every row's own answer scores the "
    "maximum (spelling, upper and lower case, the path in the output, the weights' sum)",
    "constant reward": "grader: compare the answer with the row's own field; `rftkit grade` on a "
    "right and a wrong answer must give two numbers",
    "blind grader": "grader: let it compare the answer with the row, not only look at its form",
    "limit too short": "max_completion_tokens",
    "unreadable answers": "say the form in the prompt with an example, or start from an adapter "
    "that SFT taught the form (a few dozen rows; init_adapter)",
    "task too easy": "rows: harder ones, or a grader that asks for more; or be content and stop",
    "task impossible": "easier rows first, partial credit in the grader, an SFT warm start "
    "(init_adapter) or a stronger model; more answers_per_prompt helps where some are right",
    "too little exploration": "temperature: 1.0 lets answers differ; or init_adapter: an adapter "
    "may have lost its variety",
    "no spread": "more answers_per_prompt, partial credit in the grader, or rows of middling "
    "difficulty (neither always nor never solved)",
    "too few rows": "rows: add some, a few dozen to start with; or read the run as a test of the "
    "machinery, and evaluate on rows that it has not seen",
    "format alone": "teach the form first (an example in the prompt, a short SFT), or give it less "
    "weight in the grader",
}
GRADER_FAULTS = {
    "grader fails",
    "inverted reward",
    "constant reward",
    "blind grader",
    "reference cannot score",
}


class Judge:
    """Collects findings about one signal."""

    def __init__(self, signal: Signal):
        self.signal = signal
        self.findings: list[Finding] = []
        self.missing_rows = 0

    def add(self, name: str, evidence: str, knob: str = "", level: str = "fix") -> None:
        self.findings.append(Finding(name, evidence, knob or FINDINGS[name], level))

    def too_high(self, share: Interval, most: float) -> str:
        """ "fix", "open" or "" for a share that should not be above `most`."""
        if share.low > most:
            return "fix"
        return "open" if share.high > most else ""

    def hold(self, name: str, share: Interval, most: float, evidence: str, knob: str = "") -> bool:
        """Hold a share against its threshold; True where it is not good."""
        level = self.too_high(share, most)
        if not level:
            return False
        if level == "open":
            rows = more_rows(share, most, self.signal.rows)
            self.missing_rows = max(self.missing_rows, rows)
            evidence += f"; {most:.0%} lies inside the interval, so it cannot be told yet"
        self.add(name, evidence, knob, level)
        return True
