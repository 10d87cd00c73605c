"""The kit's datasets are found in a checkout and in a wheel; small files are read with a place."""

from __future__ import annotations

import pytest

from rftkit.files import UserError, dataset, datasets_folder, printable, read_json, shorten


def test_the_datasets_of_this_installation_are_found():
    assert (dataset("gene_ranking") / "task.json").is_file()


def test_the_copy_in_the_wheel_comes_first(tmp_path):
    (tmp_path / "rftkit" / "_datasets").mkdir(parents=True)
    assert datasets_folder(tmp_path / "rftkit") == tmp_path / "rftkit" / "_datasets"


def test_hugging_face_datasets_is_not_taken_for_ours(tmp_path):
    (tmp_path / "rftkit").mkdir()
    (tmp_path / "datasets").mkdir()  # site-packages/datasets, the library
    with pytest.raises(UserError, match="install rftkit again"):
        datasets_folder(tmp_path / "rftkit")
    (tmp_path / "pyproject.toml").touch()  # now it is a checkout
    assert datasets_folder(tmp_path / "rftkit") == tmp_path / "datasets"


def test_a_misspelt_dataset_is_answered_with_the_names_there_are():
    with pytest.raises(UserError, match=r"'gene_rankin'.*gene_ranking"):
        dataset("gene_rankin")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"a": 1,\n "b" 2}', "x.json:2:6: "),
        (b'{"a": "\xe4"}', "x.json: .*byte 7"),
        (b"[" * 100_000, "x.json: "),
        (None, "x.json: cannot be read"),
    ],
)
def test_an_unreadable_json_file_is_refused_with_its_place(tmp_path, content, place):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=place):
        read_json(tmp_path / "x.json")


def test_a_byte_order_mark_before_json_is_skipped(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_a_shown_value_is_one_short_printable_line():
    assert printable("a\x1b[31m\ud800") == r"a\x1b[31m\ud800"
    for value in ("x" * 500, ["a\nb"] * 100, "\x1b" * 100):
        assert len(shorten(value, 40)) == 40 and shorten(value, 40).isprintable()
