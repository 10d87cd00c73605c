"""The RFT JSONL and the records of a run: read, check, write, split.

records.py      SamplingConfig, Sample
rows.py         read and write rows; ids; split by group
check.py        the data contract: every fault, with its line
  lines.py      bytes to rows; json_errors.py says why a line is not JSON
  contract.py   one row: messages and tools
  answers.py    the answer fields across a file; the answer told in the prompt
  overlap.py    near-duplicates across the split
faults.py       what a fault says; errors.py the error that carries it
"""

from rftkit.data.check import CheckReport, check_file
from rftkit.data.errors import UserError
from rftkit.data.faults import Fault
from rftkit.data.records import Sample, SamplingConfig, split_completion
from rftkit.data.rows import (
    answer_fields,
    assert_disjoint,
    messages_text,
    read_rows,
    row_ids,
    row_ids_note,
    sha256_of,
    split_by_group,
    write_rows,
)

__all__ = [
    "CheckReport",
    "Fault",
    "Sample",
    "SamplingConfig",
    "UserError",
    "answer_fields",
    "assert_disjoint",
    "check_file",
    "messages_text",
    "read_rows",
    "row_ids",
    "row_ids_note",
    "sha256_of",
    "split_by_group",
    "split_completion",
    "write_rows",
]
