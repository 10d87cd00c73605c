"""The grader lab as a page that needs no install: what `make browser-lab` does.

    python tools/make_browser_lab.py site/lab

Pyodide (Python 3.14 in WebAssembly) comes from npm, the wheels from the package index, once; the
page is then served by any web server, without a network. A browser loads 16 MB.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYODIDE = "pyodide@314.0.7"
PLATFORM = "--python-version 3.14 --implementation cp --abi cp314 --abi none"
PLATFORM += " --platform pyemscripten_2026_0_wasm32 --platform any --only-binary=:all:"
CORE = "pyodide.mjs pyodide.asm.mjs pyodide.asm.wasm python_stdlib.zip pyodide-lock.json"


def pack(file: Path) -> None:
    """rftkit's Python and the task gene_ranking, as the wheel would hold them."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(ROOT.glob("rftkit/**/*.py")):
            archive.write(path, path.relative_to(ROOT))
        for path in sorted(ROOT.glob("datasets/gene_ranking/*")):
            archive.write(path, Path("rftkit", "_datasets", *path.parts[-2:]))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", PYODIDE], cwd=place, check=True)
        [packed] = Path(place).glob("*.tgz")
        with tarfile.open(packed) as archive:
            for name in CORE.split():
                content = archive.extractfile(f"package/{name}").read()
                (folder / name).write_bytes(content)
    pins = ["-c", str(ROOT / "constraints.txt"), "pydantic"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder)]
    subprocess.run([*pip, *PLATFORM.split(), *pins], check=True)
    pack(folder / "rftkit.zip")
    wheels = sorted(path.name for path in folder.glob("*.whl"))
    (folder / "files.json").write_text(json.dumps([*wheels, "rftkit.zip"]), encoding="utf-8")
    shutil.copy(ROOT / "tools" / "browser_lab.html", folder / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
