"""The notebooks with their outputs, and the docs, as a static site: what `make site` does.

    python tools/make_site.py site

README.md becomes index.html; the other pages keep their place in the tree. A link to a page leads
to its .html, a link to another file to the repository. The site needs no server, and the network
for the formulas of 04 and 14 (MathJax) alone.
"""

import os
import re
import sys
import tomllib
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path: path.with_suffix(".html") for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
PAGES |= {path: path.with_suffix(".html") for path in sorted(ROOT.glob("docs/*.md"))}
PAGES |= {ROOT / "README.md": ROOT / "index.html"}
HEAD = """<style>
body.jp-Notebook { max-width: 66rem; margin: 0 auto; padding: 1rem; }
.jp-RenderedHTMLCommon table { display: block; overflow-x: auto; margin-left: 0; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th { text-align: left; max-width: none; }
.jp-RenderedHTMLCommon img { max-width: 100%; }
.jp-RenderedHTMLCommon .highlight { margin-bottom: 1em; }
.home { margin-left: 85px; font: 1rem sans-serif; }
</style></head>"""


def write_page(source: Path, site: Path) -> Path:
    """One notebook or Markdown file as a page of the folder `site`; -> the page."""
    if source.suffix == ".ipynb":
        notebook = nbformat.read(source, as_version=4)
    else:
        notebook = new_notebook(cells=[new_markdown_cell(source.read_text(encoding="utf-8"))])
    exporter = HTMLExporter(embed_images=True, require_js_url="")
    place = {"metadata": {"path": str(source.parent), "name": source.stem}}
    html, _ = exporter.from_notebook_node(notebook, place)

    def link(match: re.Match) -> str:
        target = (source.parent / match[1]).resolve() if match[1] else source
        if target in PAGES:
            new = os.path.relpath(PAGES[target], PAGES[source].parent)
        elif target.exists() and ROOT in target.parents:
            new = f"{address}/blob/main/{target.relative_to(ROOT)}"
        else:
            return match[0]
        return f'href="{new}{(match[2] or "").lower()}"'

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    address = project["project"]["urls"]["Repository"]
    html = re.sub(r'href="([^"#:?]*)(#[^"]*)?"', link, html)
    html = re.sub(r'(<h\d id=")([^"]+)', lambda m: m[1] + m[2].lower(), html)  # as GitHub's
    home = os.path.relpath(ROOT / "index.html", PAGES[source].parent)
    html = html.replace("</head>", HEAD, 1).replace(
        "<main>", f'<a class="home" href="{home}">rftkit</a><main>', 1
    )
    page = site / PAGES[source].relative_to(ROOT)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    return page


if __name__ == "__main__":
    for source in PAGES:
        print(write_page(source, Path(sys.argv[1])))
