"""Why a line is not JSON, said in words that help: the mistakes that people make by hand."""

from __future__ import annotations

import json
import re

from rftkit.data.faults import Fault, Place, value_text

WRITE_IT = "write rows with rftkit.data.write_rows, or json.dumps(row) and a line break"


def explain_json_error(
    here: Place, text: str, error: json.JSONDecodeError, line_is_whole: bool
) -> Fault:
    """Turn the JSON reader's complaint into cause and cure.

    text           the line
    line_is_whole  it ends in a line break; the last line of a torn file does not
    """
    found, step = _cause(text, error.pos, error.msg, line_is_whole)
    around = text[max(0, error.pos - 20) : error.pos + 20].strip()
    found = f"broken JSON at column {error.pos + 1}: {found}"
    if around:
        found += f", near {value_text(around)}"
    return here.fault("broken JSON", found, "one JSON object", step, value=around)


def _cause(text: str, at: int, message: str, line_is_whole: bool) -> tuple[str, str]:
    start = text[:200].lstrip()
    here = text[at : at + 20]
    if not start.startswith(("{", "[")):
        return _cause_of_other_text(start)
    if re.search(r",\s*[}\]]", text[max(0, at - 20) : at + 3]) and here[:1] in ("}", "]", ","):
        return "a comma before the closing bracket", "remove the last comma"
    if here.startswith("'"):
        return "single quotes", f"JSON wants double quotes; print(row) is not JSON: {WRITE_IT}"
    if here.startswith(("“", "”", "„", "‘", "’")):
        return "typographic quotes", 'a text editor replaced the straight quotes ("): restore them'
    if here.startswith(("None", "True", "False", "nan", "inf")):
        return "a Python word", f"JSON says null, true, false: {WRITE_IT}"
    if here.startswith(("//", "/*", "#")):
        return "a comment", "JSON has no comments: remove it"
    if message == "Extra data":
        return _cause_of_extra_data(text, at)
    if message.startswith("Invalid control character"):
        step = r"write line breaks in a text as \n and tabs as \t: json.dumps does"
        return "a raw tab or control character inside a string", step
    if message.startswith("Invalid \\"):
        step = r"write each backslash twice (C:\\data, \\frac): json.dumps does"
        return "a single backslash inside a string", step
    if message.startswith("Unterminated string") or not text[at:].strip():
        if line_is_whole:
            step = rf"the row goes on in the next line: a line break in a text is \n; {WRITE_IT}"
            return "the line ends inside the object", step
        step = "the file was cut off: write it again (write beside, then rename)"
        return "the file ends inside the object", step
    if message.startswith("Expecting ',' delimiter"):
        step = r"add it; a double quote inside a text is written \""
        return "a comma is missing, or a double quote stands inside a text", step
    if message.startswith("Expecting property name"):
        return "a key without double quotes", f"put it into double quotes: {WRITE_IT}"
    if message.startswith("Expecting ':'"):
        return "a colon is missing after a key", f"add it, or: {WRITE_IT}"
    return message[:1].lower() + message[1:], WRITE_IT


def _cause_of_other_text(start: str) -> tuple[str, str]:
    if start.startswith(("//", "#", "/*")):
        return "a comment", "JSON has no comments: remove the line"
    if start.startswith("```"):
        return "a Markdown fence", "remove the lines with ``` around the rows"
    if start.startswith("data:"):
        return 'the line starts with "data:"', "remove the stream's prefix from each line"
    if start.startswith("<"):
        return "the line looks like HTML or XML", "the download may be an error page: open it"
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"
    if start.startswith(("<<<<<<<", "=======", ">>>>>>>")):
        return "a merge conflict's marker", "resolve the conflict in the file"
    if "," in start or "\t" in start or ";" in start:
        step = (
            f"the file looks like a table (CSV): turn each record into an object, then {WRITE_IT}"
        )
        return "the line does not start with {", step
    return "the line does not start with {", WRITE_IT


def _cause_of_extra_data(text: str, at: int) -> tuple[str, str]:
    rest = text[at : at + 20]
    if "\r" in text[max(0, at - 3) : at]:
        return "lines end in CR alone (old Macintosh)", r"write with newline='\n'"
    if rest.startswith(","):
        return "a comma after the object", "remove it: rows are parted by line breaks alone"
    if rest.startswith(("{", "[")):
        return "two objects on one line", "put each on a line of its own"
    return "text after the object", "remove it"
