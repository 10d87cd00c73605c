"""Files are written beside their place and renamed: a reader never meets a torn one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with "\\n" line ends; the old file stays whole until the new one is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    with open(beside, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: str | Path, record: Any) -> None:
    """One JSON object, indented by two; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
