"""Where the kit's own files lie, how small files are read and written, how text is shown."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
MODELS = PACKAGE / "models"
FETCHED = ("smollm2",)  # models that `rftkit fetch` brings


class UserError(ValueError):
    """Something the user can fix, printed without a traceback. Write it as
    `place: what is there, expected what: what to do next`."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What a notebook prints."""
        return [f"{type(self).__name__}: {self}"]


def dataset(name: str) -> Path:
    """The folder of a dataset, for example `dataset("gene_ranking")`."""
    in_wheel = PACKAGE / "_datasets"
    folder = in_wheel if in_wheel.is_dir() else PACKAGE.parent / "datasets"
    return one_of(folder, name, name)


def embedded_model(name: str) -> Path:
    """The folder of an embedded model: "mini" or "large"."""
    return one_of(MODELS, name, f"embedded:{name}")


def fetched_folder(name: str) -> Path:
    """Where `rftkit fetch` puts a model: in RFTKIT_CACHE, by default ~/.cache/rftkit."""
    return Path(os.environ.get("RFTKIT_CACHE", "~/.cache/rftkit")).expanduser() / name


def one_of(folder: Path, name: str, called: str) -> Path:
    if not (folder / name).exists():
        names = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir()))
        raise UserError(f"{called!r} is not in {folder}, expected one of {names}: correct the name")
    return folder / name


def model_gates(names: Iterable[str] = ("mini", "large")) -> dict[str, Any]:
    """The gates that each embedded base passed, from the record beside its weights."""
    gates = {name: read_json(embedded_model(name) / "gates.json")["gates"] for name in names}
    keys = ("value", "expected", "passed")
    return {name: {g["name"]: {k: g[k] for k in keys} for g in gates[name]} for name in gates}


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises UserError with the cause."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): correct the path") from None


def read_json(source: str | Path) -> Any:
    """The content of a JSON file, or of text that begins with { or [. UserError with the place."""
    is_text = isinstance(source, str) and source.lstrip()[:1] in ("{", "[")
    try:
        return json.loads(source if is_text else read_text(source))
    except json.JSONDecodeError as error:
        place = f"{'JSON' if is_text else source}:{error.lineno}:{error.colno}"
        raise UserError(f"{place}: not JSON ({error.msg}): correct it") from None


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


@cache
def say_once(text: str) -> None:
    """A note on standard error, once in this process."""
    print(f"note: {text}", file=sys.stderr)


def plural(count: int, one: str) -> str:
    """`3 rows`, `1 row`."""
    return f"{count:,} {one if count == 1 else one + 's'}"


def printable(text: str) -> str:
    """Escape what a terminal would act on or cannot print: control characters, lone surrogates."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shorten(value: Any, limit: int = 80) -> str:
    """A value on one printable line of at most `limit` characters, for a message."""
    text = value if isinstance(value, str) else repr(value)
    text = printable(" ".join(text[: limit * 4].split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Records as a Markdown table: their keys, which all share, are its columns."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def is_full_disk(error: BaseException, out: Path) -> bool:
    """Did writing fail for want of space? safetensors and torch say so in words of their own."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "os error 28" in str(error) or shutil.disk_usage(out).free < 1_000_000
