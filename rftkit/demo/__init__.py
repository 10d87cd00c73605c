"""`rftkit demo`: the whole of RFT once, on two CPU cores, and an honest table at the end.

1. load the gene-ranking task, check it, show one case as the model sees it
2. evaluate what stands there before any training
3. RFT: GRPO + LoRA on the mini, stopped by genes of its own
4. its rivals: SFT on the answers, SFT on the base's own right completions
5. the table, with intervals and paired differences; report.json, report.md, pictures

run.py     what is trained and evaluated, in this order      settings.py   the systems, the profiles
report.py  report.json and the other files                   text.py       tables and their reading
real.py    published cases of real patients                  baselines.py  systems that are no model
"""

from rftkit.demo.baselines import Ranking, as_samples, overlap, random_ranking, world_genes
from rftkit.demo.real import evaluate_real, real_cases
from rftkit.demo.report import checksums, lines_of, make_report, model_gates, write_report
from rftkit.demo.run import Demo, assert_unseen, run_demo
from rftkit.demo.settings import (
    LARGE,
    PREFILL,
    PROFILES,
    REFERENCE_LINES,
    REFERENCE_SOURCE,
    RIVALS,
    STEP,
    SYSTEMS,
    VOTES,
    Profile,
    Reporter,
)
from rftkit.demo.text import (
    cell,
    overlap_sentence,
    paired_table,
    reading,
    report_text,
    systems_table,
)

__all__ = [
    "LARGE",
    "PREFILL",
    "PROFILES",
    "REFERENCE_LINES",
    "REFERENCE_SOURCE",
    "RIVALS",
    "STEP",
    "SYSTEMS",
    "VOTES",
    "Demo",
    "Profile",
    "Ranking",
    "Reporter",
    "as_samples",
    "assert_unseen",
    "cell",
    "checksums",
    "evaluate_real",
    "lines_of",
    "make_report",
    "model_gates",
    "overlap",
    "overlap_sentence",
    "paired_table",
    "random_ranking",
    "reading",
    "real_cases",
    "report_text",
    "run_demo",
    "systems_table",
    "world_genes",
    "write_report",
]
