"""Restart and run all, then write the outputs back: what `make notebooks` does.

    python tools/run_notebooks.py notebooks/*.ipynb

The only way in which a notebook's outputs are written. A notebook with a cell that fails is left as
it was. What differs from run to run without a meaning (widget state, timestamps, the kernel's own
name and version) is taken out, so that a diff shows what changed.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

LONGEST_CELL = 3600  # seconds
INLINE_PNG = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=]+")


def run(path: Path) -> None:
    """Execute in a fresh kernel, in the notebook's own folder, and write the file again."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=LONGEST_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # a progress bar leaves its last state, not a hundred
    )
    client.execute()
    normalise(notebook)
    beside = path.with_suffix(".ipynb.writing")
    nbformat.write(notebook, beside)
    os.replace(beside, path)


def normalise(notebook: nbformat.NotebookNode) -> None:
    """In place: no widget state, no timings, counts 1..n, no empty code cell, small pictures."""
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    notebook.cells = [c for c in notebook.cells if c.cell_type != "code" or c.source.strip()]
    count = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = fewer_colours(output.data["image/png"])
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = INLINE_PNG.sub(
                    lambda found: fewer_colours(found.group(), 192), output.data["text/html"]
                )


def fewer_colours(png: str, colours: int = 96) -> str:
    """A drawn picture in base64 as a third of its bytes: lines and letters need few colours."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":
        return png  # done before
    packed = io.BytesIO()
    reduced = picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    reduced.save(packed, "PNG", optimize=True)
    return min(png, base64.b64encode(packed.getvalue()).decode(), key=len)


def main(paths: list[str]) -> int:
    os.environ.setdefault("RFTKIT_PROFILE", "full")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not paths or not all(Path(path).is_file() for path in paths):
        print(f"no such notebook among: {' '.join(paths) or '(none named)'}", file=sys.stderr)
        return 1
    failed = []
    for path in map(Path, paths):
        began = time.perf_counter()
        print(f"{path} ...", end=" ", flush=True)
        try:
            run(path)
            print(f"{time.perf_counter() - began:.0f} s", flush=True)
        except CellExecutionError as error:
            failed.append(path)
            print(f"failed, left as it was\n{error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
