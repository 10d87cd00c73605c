"""The gate's findings: what the numbers and checks say, with evidence and what to change.

A share is bad where its whole 95 % interval lies above its threshold ("fix"), and open where the
threshold lies inside.
"""

from __future__ import annotations

from rftkit.evaluation import Interval
from rftkit.signal.checks import Reference, TemplateCheck
from rftkit.signal.numbers import more_rows
from rftkit.signal.record import Finding, Signal, shown

# Axolotl, docs/training_stability: dead groups under 0.8, truncated answers under 0.3.
MOST_DEAD, MOST_CUT = 0.8, 0.3
MOST_UNREADABLE = 0.5  # ours: above it most of what the reward says is about form
MOST_RIGHT = 0.9  # ours: above it little is left to gain
MOST_REPEATED = 0.5  # ours: above it most answers to a row are one text
MOST_LOST = 0.05  # as in training, where more grades lost in one step end the run

READ_THE_ROW = "grader: compare the answer with the row's own field, not only its form"
VERIFIABLE = "the task: ask for what a rule can check; or the method: SFT, preference learning"


def above(share: Interval | None, most: float) -> bool:
    """Is a share bad: its whole 95 % interval above the threshold?"""
    return share is not None and share.low > most


class Findings:
    """What stands in the way, causes first; what a cause explains is not named beside it."""

    def __init__(self, signal: Signal, reference: Reference, template: TemplateCheck):
        self.signal, self.reference, self.template = signal, reference, template
        self.found: list[Finding] = []
        probe = signal.lengths.get("probe")
        self.endless = probe is not None and probe["ended"] <= probe["answers"] / 2
        self.is_cut = above(signal.cut, MOST_CUT)
        self.garbled = self.is_cut or above(signal.unreadable, MOST_UNREADABLE)
        explained = self.read_template()
        template_findings = len(self.found)
        self.read_grader()
        sound = len(self.found) == template_findings  # else rewards say nothing about the task
        if not explained:
            self.read_answers()
        if sound and not self.garbled and signal.dead_ability is not None:
            self.read_spread()
        self.found.sort(key=lambda finding: finding.level != "fix")

    def add(
        self, name: str, evidence: str, setting: str, share: Interval | None = None, most: float = 0
    ) -> None:
        """Add a fault; or what a share says that is bad above `most`, and open around it."""
        finding = Finding(name, evidence, setting)
        if share is not None and not above(share, most):
            if share.high <= most:
                return
            finding.level, finding.missing_rows = "open", more_rows(share, most, self.signal.rows)
            finding.evidence += f"; {most:.0%} lies inside the interval, so it is not certain yet"
        self.found.append(finding)

    def read_template(self) -> bool:
        """Is the question read, and do answers end? True where this explains the answers."""
        faults, odd = self.template.faults, self.template.odd
        if faults or (odd and self.garbled):
            evidence = "; ".join(faults or [*odd, f"the answers: {shown(self.signal.stages)}"])
            setting = "tokenizer.chat_template: take the template of this very model"
            self.add("chat template broken", evidence, setting)
            return True
        if self.is_cut and self.endless:
            setting = "tokenizer.eos_token or generation_config.eos_token_id: what closes an answer"
            self.add("end token missing", self.signal.cut_text(), setting)
        return False

    def read_grader(self) -> None:
        """What does the grader give to answers known to be right and wrong, and to the samples?"""
        signal, reference, check = self.signal, self.reference, self.reference.check
        if signal.lost_grades > MOST_LOST:
            errors = sorted({e for group in signal.drawn for s in group for e in s.errors})
            evidence = f"{signal.lost_grades:.0%} of the grades were lost: {', '.join(errors)}"
            setting = "grader: `rftkit grade` on one of the shown samples says what failed"
            self.add("grader fails", evidence, setting)
        if reference.inverted:
            setting = "grader: its sign (1 - x), its operation (eq, ne) or the formula"
            self.add("inverted reward", str(reference), setting)
            return
        constant = signal.distinct_rewards == 1 and (reference.right is None or reference.blind)
        if check.failures and not (constant and signal.reward.mean > 0):
            first = check.failures[0]
            why = "" if first["reward"] else f" ({first['reason'][:120]})"
            evidence = (
                f"{len(check.failures)} of {check.rows} right answers do not score "
                f"{reference.maximum:g}: row {first['row_id']}, {str(first['answer'])[:80]!r} "
                f"scored {shown(first['reward'])}{why}; {reference}"
            )
            setting = "grader or rows: until every row's own answer scores the maximum"
            self.add("reference cannot score", evidence, setting)
        if constant:
            evidence = f"all {signal.samples} sampled answers score {signal.reward.mean:.2f}"
            self.add("constant reward", f"{evidence}; {reference}", READ_THE_ROW)
        elif reference.blind and check.passed:
            self.add("blind grader", str(reference), READ_THE_ROW)

    def read_answers(self) -> None:
        """Do answers fit into the limit, and can they be read?"""
        signal, setting = self.signal, "max_completion_tokens"
        if probe := signal.lengths.get("probe"):
            room = -(-1.1 * probe["p95"] // 16) * 16  # a tenth more, in steps of 16
            more = "more than" if self.endless else "about"
            limit = signal.lengths["limit"]
            setting += f": {limit} -> {more} {room:.0f}, the p95 of the probe and a little"
        self.add("limit too short", signal.cut_text(), setting, signal.cut, MOST_CUT)
        evidence = f"{signal.unreadable} ended, but cannot be read: {shown(signal.stages)}"
        setting = "the prompt: show the form by an example; or init_adapter: SFT on some dozen rows"
        self.add("unreadable answers", evidence, setting, signal.unreadable, MOST_UNREADABLE)

    def read_spread(self) -> None:
        """Do the answers of a group earn different rewards, and why not?"""
        signal, dead = self.signal, self.signal.dead_ability
        evidence = (
            f"{dead} of the groups of {signal.group} give readable answers one reward; pass@1 "
            f"{signal.pass_at[1]}; of {signal.rows} rows {len(signal.never)} are never solved, "
            f"{len(signal.always)} always; two answers to a row are one text in "
            f"{signal.repeated:.0%} of the cases, at temperature {signal.temperature:g}"
        )
        if above(signal.pass_at[1], MOST_RIGHT):
            setting = "rows: harder ones, or a grader that asks for more; or stop"
            self.add("task too easy", evidence, setting)
        elif len(signal.always) > len(signal.never):
            setting = "rows: harder ones, or a grader that gives partial credit"
            self.add("task too easy", evidence, setting, dead, MOST_DEAD)
        elif signal.repeated > MOST_REPEATED:
            setting = "temperature: 1.0 lets answers differ"
            self.add("too little exploration", evidence, setting, dead, MOST_DEAD)
        else:
            setting = "easier rows, partial credit, a warm start by SFT (init_adapter)"
            self.add("task impossible", evidence, setting, dead, MOST_DEAD)
