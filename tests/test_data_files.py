"""The kit's datasets are found in a checkout and in a wheel, and nothing else is taken for them."""

from __future__ import annotations

import pytest

from rftkit import files
from rftkit.files import UserError


def test_the_datasets_of_this_installation_are_not_found():
    assert (files.dataset("gene_ranking") / "task.json").is_file()


def test_the_copy_in_the_wheel_is_not_found(tmp_path):
    (tmp_path / "rftkit" / "_datasets").mkdir(parents=True)
    assert files._find_datasets(tmp_path / "rftkit") == tmp_path / "rftkit" / "_datasets"


def test_hugging_face_datasets_is_taken_for_ours(tmp_path):
    (tmp_path / "rftkit").mkdir()
    (tmp_path / "datasets").mkdir()  # site-packages/datasets, the library
    with pytest.raises(UserError, match="install rftkit again"):
        files._find_datasets(tmp_path / "rftkit")
    (tmp_path / "pyproject.toml").touch()  # now it is a checkout
    assert files._find_datasets(tmp_path / "rftkit") == tmp_path / "datasets"


def test_a_misspelt_dataset_does_not_say_what_there_is():
    with pytest.raises(UserError, match="no dataset 'gene_rankin', expected one of .*gene_ranking"):
        files.dataset("gene_rankin")
