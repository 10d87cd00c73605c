"""docs/api.md: each public name stands there, and its examples run."""

import re

from project_files import ROOT

import rftkit

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_page_names_what_the_package_offers():
    imported = re.findall(r"^from rftkit import (.+)$", PAGE, flags=re.M)
    named = {name for line in imported for name in line.split(", ")}
    assert named == set(rftkit.__all__) == set(dir(rftkit)) & named
    assert all(getattr(rftkit, name) is not None for name in named)


def test_the_examples_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(example, "api.md", "exec"), names)
    assert names["run"].out.name == "first" and names["signal"].samples > 0
