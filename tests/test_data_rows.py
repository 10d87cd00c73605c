"""Rows: what is read, written, named and split. Each test is named after what would go wrong."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rftkit.files import UserError
from rftkit.rows import (
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


def make_row(text: str = "Seizure, Ataxia. Which gene?", gene: str = "SCN1A", **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "reference_gene": gene, **more}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc é"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), max_size=4
    ),
    answer=json_values,
)
def test_a_row_changes_between_writing_and_reading(tmp_path, texts, answer):
    damaged = ("\ufffd", "Ã", "â€", "{{")  # refused on purpose
    rows = [make_row(t, answer=answer) for t in texts if not any(d in t for d in damaged)]
    if not rows:
        return
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows


def test_the_same_rows_give_other_bytes(tmp_path):
    rows = [
        make_row("Café-au-lait spot\u2028, 症状"),
        make_row("b\nc", "NF1", nested={"b": 1, "a": []}),
    ]
    one, two = tmp_path / "one.jsonl", tmp_path / "deep" / "er" / "two.jsonl"
    write_rows(one, rows)
    write_rows(two, json.loads(json.dumps(rows)))
    assert one.read_bytes() == two.read_bytes()
    assert "Café-au-lait spot\u2028, 症状".encode() in one.read_bytes()
    assert one.read_bytes().count(b"\n") == 2 and b"\r" not in one.read_bytes()
    assert sha256_of(one) == sha256_of(two)


@pytest.mark.parametrize(
    "value, words",
    [
        (float("nan"), "NaN becomes null"),
        ({1, 2}, "a set a list"),
        ("half \ud83d", "half of a character"),
    ],
)
def test_a_failed_write_tears_the_old_file(tmp_path, value, words):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row()])
    before = path.read_bytes()
    with pytest.raises(UserError, match=words) as caught:
        write_rows(path, [make_row("new"), make_row(bad=value)])
    assert "rows.jsonl:2" in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_writing_into_a_file_as_if_it_were_a_folder_shows_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_rows(tmp_path / "file" / "rows.jsonl", [make_row()])


def test_reading_goes_on_after_the_first_fault(tmp_path):
    path = tmp_path / "train.jsonl"
    good, sft = make_row(), make_row("other")
    sft["messages"].append({"role": "assistant", "content": "SCN1A"})
    path.write_text("\n".join(json.dumps(r) for r in (good, sft, {"messages": 3})) + "\n")
    with pytest.raises(UserError) as caught:
        read_rows(path)
    assert str(caught.value) == (
        f'{path}:2: "messages" ends with role "assistant", expected "user": '
        "move the answer into a key of its own"
    )


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"messages": [}\n', b"\xff\xfe{\x00", b"\r"])
def test_a_file_that_holds_no_rows_reads_as_an_empty_list(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="train.jsonl"):
        read_rows(path)


def test_a_note_stops_a_file_from_being_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = make_row()
    row["messages"].insert(0, {"role": "system", "content": "You are a geneticist.", "extra": 1})
    write_rows(path, [row])
    assert read_rows(path) == [row]


def test_an_answer_field_slips_into_the_prompt_or_out_of_the_answers():
    row = make_row("a", tools=[], sex="female", case_id="c-1")
    assert answer_fields(row) == {"reference_gene": "SCN1A", "sex": "female", "case_id": "c-1"}
    assert messages_text(row) == "a"
    several = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    assert messages_text(several) == "s\nu"
    assert messages_text({"messages": [{"role": "user", "content": [{"text": "p"}]}, None]}) == "p"


def test_two_rows_get_the_same_id():
    assert row_ids([make_row(case_id="a"), make_row(row_id=7), make_row()]) == ["a", "7", "3"]
    with pytest.raises(UserError, match='rows 1 and 3 share the id "a"'):
        row_ids([make_row(case_id="a"), make_row(), make_row(row_id="a")])
    with pytest.raises(UserError, match='rows 1 and 2 share the id "2"'):
        row_ids([make_row(case_id="2"), make_row()])  # a line number meets a real id


def test_line_numbers_serve_as_ids_in_silence():
    assert row_ids_note([make_row(case_id="a")]) == ""
    note = row_ids_note([make_row(case_id="a"), make_row(case_id=" "), make_row(case_id=True)])
    assert "2 of 3 rows" in note and "first: row 2" in note


def many_rows(seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    genes = [f"GENE{i}" for i in range(60) for _ in range(rng.choice([1, 2, 5, 20, 60]))]
    return [make_row(f"case {i}", gene, case_id=f"c{i}") for i, gene in enumerate(genes)]


SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_stands_on_two_sides_of_the_split(seed):
    rows = many_rows(seed)
    sides = split_by_group(rows, "reference_gene", SHARES, seed)
    genes = {side: {row["reference_gene"] for row in part} for side, part in sides.items()}
    assert not genes["train"] & genes["validation"]
    assert not genes["train"] & genes["test"]
    assert not genes["validation"] & genes["test"]
    assert sorted(r["case_id"] for part in sides.values() for r in part) == sorted(
        r["case_id"] for r in rows
    )
    for side, share in SHARES.items():
        assert abs(len(sides[side]) / len(rows) - share) < 0.03, side


def test_a_copy_of_a_prompt_stands_on_two_sides_of_the_split():
    rows = many_rows()
    for i in range(0, 30):  # chains of genes that share a prompt, word for word
        rows.append(make_row(f"shared {i // 3}", f"GENE{i}", case_id=f"s{i}"))
    sides = split_by_group(rows, "reference_gene", SHARES, 0)
    side_of: dict[str, str] = {}
    for side, part in sides.items():
        for row in part:
            text = messages_text(row)
            if text.startswith("shared"):
                assert side_of.setdefault(text, side) == side
    assert len(side_of) == 10


def test_the_split_changes_from_run_to_run_or_with_the_order_of_rows():
    rows = many_rows()
    split = split_by_group(rows, "reference_gene", SHARES, 3)
    assert split == split_by_group(rows, "reference_gene", SHARES, 3)
    assert split != split_by_group(rows, "reference_gene", SHARES, 4)
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    again = split_by_group(shuffled, "reference_gene", SHARES, 3)
    for side in SHARES:
        ids = sorted(row["case_id"] for row in again[side])
        assert ids == sorted(row["case_id"] for row in split[side])
    assert [r for r in rows if r in split["test"]] == split["test"]  # rows keep their order


def test_large_groups_never_reach_the_smaller_sides():
    """A split that always gives the large groups to training tests on rare genes alone."""
    rows = [make_row(f"{g} {i}", f"GENE{g}") for g in range(20) for i in range(5 + 15 * (g < 4))]
    large = {f"GENE{g}" for g in range(4)}
    shares = {"train": 0.5, "test": 0.5}
    reached = {
        seed
        for seed in range(20)
        if large
        & {
            r["reference_gene"]
            for r in split_by_group(rows, "reference_gene", shares, seed)["test"]
        }
    }
    assert len(reached) >= 10


def test_a_group_is_dealt_to_a_side_that_has_no_room_for_it():
    rows = [make_row(f"case {i}", "LARGE" if i < 30 else f"GENE{i}") for i in range(100)]
    for seed in range(40):
        sides = split_by_group(rows, "reference_gene", {"train": 0.8, "test": 0.2}, seed)
        assert len(sides["test"]) == 20


def test_a_side_stays_empty_without_a_word():
    rows = [make_row(f"{g} {i}", f"GENE{g}") for g in range(3) for i in range(10)]
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    assert all(split_by_group(rows, "reference_gene", shares, seed)["test"] for seed in range(5))
    with pytest.raises(UserError, match="2 groups"):
        split_by_group(rows[:20], "reference_gene", shares, 0)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5, "b": 0.4}, {"a": 1.2, "b": -0.2}])
def test_shares_that_make_no_sense_are_taken(shares):
    with pytest.raises(UserError, match="add up to 1"):
        split_by_group(many_rows(), "reference_gene", shares, 0)


def test_a_row_without_the_group_is_dealt_out():
    with pytest.raises(UserError, match='row 2 has no "gene".*reference_gene'):
        split_by_group(
            [make_row("a", gene="A") | {"gene": "x"}, make_row("b")], "gene", {"a": 1}, 0
        )


def test_a_leak_between_sides_passes_the_assertion():
    a, b = make_row("a", "A"), make_row("b", "B")
    assert_disjoint({"train": [a], "test": [b]}, "reference_gene")
    with pytest.raises(AssertionError, match="train and in test"):
        assert_disjoint({"train": [a], "test": [b, make_row("c", "A")]}, "reference_gene")
    with pytest.raises(AssertionError, match="train and in test"):
        assert_disjoint({"train": [a], "test": [make_row("a", "C")]}, "reference_gene")


def test_the_sum_of_a_missing_file_shows_a_traceback(tmp_path):
    with pytest.raises(UserError, match="check the path"):
        sha256_of(tmp_path / "nowhere")
