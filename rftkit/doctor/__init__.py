"""What is wrong with a run, read off its log: `rftkit doctor RUN_OR_LOG`.

    found = examine("runs/first")            # or a log.jsonl, or TRL's trainer_state.json
    for finding in found.findings:
        print(finding.name, finding.steps, finding.evidence, finding.knob)

A rule looks at one log and gives at most one finding: the steps where it shows, the evidence in
numbers, and the knob to turn. What a log does not hold is not judged.

logs.py         reads ours and TRL's into one Log      rules.py   the limits, one rule a fault
measures.py     what rules are made of                knobs.py   what a fault means, what to turn

Left out: what no log shows. Whether a grader asks for the right thing is a question to the answers
themselves; of all numbers here, only the held-out task metric can hear it.
"""

from rftkit.doctor.examination import Examination, Finding, examine, examine_log
from rftkit.doctor.logs import Log, read_log

__all__ = ["Examination", "Finding", "Log", "examine", "examine_log", "read_log"]
