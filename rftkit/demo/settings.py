"""What the demo compares, how large its two profiles are, and who hears about it."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEMS = (
    "random",
    "overlap",
    "mini base",
    "mini base, told the plan",
    "large base",
    "SFT mini",
    "rejection-sampling SFT mini",
    "RFT mini",
)
RIVALS = (
    "large base",
    "SFT mini",
    "rejection-sampling SFT mini",
    "mini base, told the plan",
    "mini base",
)
REFERENCE_LINES = [
    {"name": "OpenAI: o1-mini 17.7 %", "value": 0.177},
    {"name": "OpenAI: o1 25 %", "value": 0.25},
    {"name": "OpenAI: RFT o1-mini 31 %", "value": 0.31},
]
REFERENCE_SOURCE = (
    "quoted from OpenAI's announcement of RFT, 6 Dec 2024: other cases, another split, other models"
)
PREFILL = "<think>Diagnose first."
VOTES = 8  # samples a case of a base model, for maj@8 and pass@8
LARGE, STEP = 3.0, 3.0  # what an answer of the large model, and learning from one, cost beside 1


@dataclass
class Profile:
    """Smoke is the same run, smaller: it proves that everything works, and nothing else."""

    test_rows: int | None
    steps: int
    prompts_per_step: int
    eval_rows: int
    epochs: int


PROFILES = {
    "full": Profile(test_rows=None, steps=50, prompts_per_step=8, eval_rows=240, epochs=8),
    "smoke": Profile(test_rows=60, steps=6, prompts_per_step=4, eval_rows=30, epochs=1),
}


class Reporter:
    """Hears what happens; the command line shows it. All methods may be left as they are."""

    def say(self, text: str = "") -> None:
        """One line for the reader."""

    def plan(self, work: float) -> None:
        """The whole run's size, in answers' worth of time (an answer of the mini is 1)."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def advance(self, work: float) -> None:
        """So much is done, in answers' worth of time."""
