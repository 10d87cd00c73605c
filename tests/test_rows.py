"""Rows, small files and the machine: what is read, written, named and split."""

import json
import random

import pandas
import pytest
from datasets import Dataset, DatasetDict
from IPython.core.interactiveshell import InteractiveShell

from rftkit.environment import choose_device, profile
from rftkit.files import UserError, dataset, read_json
from rftkit.rows import messages_text, read_rows, row_ids, split_by_group, write_rows


def test_a_notebook_shows_a_users_mistake_as_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()
    shell.run_cell("from rftkit import UserError, load_task\nload_task('none')")
    shell.run_cell("class Mine(UserError): ...\nraise Mine('a.csv: gone')")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("UserError: 'none'") and last == "Mine: a.csv: gone"


def test_a_gpu_is_taken_with_the_dtype_that_it_computes_in(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "a GPU")
    for cuda, bf16, dtype in ((0, 0, "float32"), (1, 1, "bfloat16"), (1, 0, "float16")):
        monkeypatch.setattr("torch.cuda.is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda bf16=bf16: bf16)
        assert choose_device()[:2] == ("cuda" if cuda else "cpu", dtype)


def test_an_unknown_profile_and_an_unknown_dataset_are_refused(monkeypatch):
    monkeypatch.setenv("RFTKIT_PROFILE", "fast")
    with pytest.raises(UserError, match="fast"):
        profile()
    with pytest.raises(UserError, match=r"'gene_rankin'.*gene_ranking"):
        dataset("gene_rankin")


def test_an_unreadable_json_file_is_refused_with_its_place(tmp_path):
    file = tmp_path / "x.json"
    for content, place in ((b'{"a": 1,\n "b" 2}', "x.json:2:6: "), (b'"\xe4"', "x.json: .*byte 1")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=place):
            read_json(file)


def case(text: str, gene: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "gene": gene} | more


def test_a_row_is_read_as_it_was_written_and_gives_the_same_bytes(tmp_path):
    values = (None, 0.1, "Café\u2028, 症状\n", {"b": [{}]})
    rows = [case("Which gene?", "A", note=value) for value in values]
    one, two = tmp_path / "one.jsonl", tmp_path / "deep" / "er" / "two.jsonl"
    write_rows(one, rows)
    write_rows(two, read_rows(one))
    assert read_rows(two) == rows and one.read_bytes() == two.read_bytes()


TABLE = [{"prompt": f"Käse {n}?", "gene": gene} for n, gene in enumerate(("007", "NA", "A"))]
READ = [case(row["prompt"], row["gene"]) for row in TABLE]
SOURCES = {
    "DataFrame": lambda place: pandas.DataFrame(TABLE),
    "Dataset": lambda place: Dataset.from_list(TABLE),
    "generator": lambda place: (row for row in TABLE),
    "list": lambda place: TABLE,
    "a.csv": lambda place: pandas.DataFrame(TABLE).to_csv(place, index=False),
    "b.csv": lambda place: pandas.DataFrame(TABLE).to_csv(place, sep=";", encoding="utf-8-sig"),
    "a.parquet": lambda place: pandas.DataFrame(TABLE).to_parquet(place),
    "a.json": lambda place: place.write_text(json.dumps(TABLE, indent=1)),
    "b.json": lambda place: place.write_text("".join(json.dumps(row) + "\n" for row in TABLE)),
    "a.jsonl": lambda place: write_rows(place, TABLE),
    "folder": lambda place: Dataset.from_list(TABLE).save_to_disk(place),
}


@pytest.mark.parametrize("name", SOURCES)
def test_rows_are_the_same_from_each_source_and_the_mapping_is_said_once(tmp_path, name, capsys):
    source = SOURCES[name](tmp_path / name)
    rows = read_rows(tmp_path / name if (tmp_path / name).exists() else source, name)
    assert [{key: row[key] for key in READ[0]} for row in rows] == READ
    assert read_rows(rows) is rows and capsys.readouterr().err.count('"prompt"') == 1
    assert TABLE[0].keys() == {"prompt", "gene"}  # what was given stays as it was


def test_values_of_a_frame_become_json():
    frame = pandas.DataFrame({"prompt": ["a", "b"], "n": [1, 2], "x": [0.1, float("nan")]})
    frame["day"], frame["genes"] = pandas.Timestamp("2026-01-02"), [["A"], []]
    first, second = read_rows(frame)
    assert (first["n"], first["x"], second["x"], second["genes"]) == (1, 0.1, None, [])
    assert first["day"].startswith("2026-01-02")
    [row] = read_rows([{"prompt": "a", "n": frame["n"].iloc[0], "xs": frame["x"].to_numpy()[:1]}])
    assert row["n"] == 1 and row["xs"] == [0.1]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"train": [], "test": []}, "train, test"),
        (DatasetDict(train=Dataset.from_list(TABLE)), "train"),
        (["a text"], "rows:1: "),
        (7, "rows: "),
        ([*TABLE, {"text": "no prompt"}], "rows:4: .*messages"),
        ("nowhere.csv", "nowhere.csv: "),
    ],
)
def test_what_holds_no_rows_is_refused_with_its_place(source, words):
    with pytest.raises(UserError, match=words):
        read_rows(source)


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path, row = tmp_path / "rows.jsonl", case("Which gene?", "A")
    write_rows(path, [row])
    with pytest.raises(ValueError):
        write_rows(path, [row | {"gene": "B"}, row | {"bad": float("nan")}])
    assert read_rows(path) == [row] and list(tmp_path.iterdir()) == [path]


def test_ids_are_unique_and_line_numbers_serve_where_a_row_has_none():
    assert row_ids([{"case_id": "a"}, {"row_id": 7}, {}]) == ["a", "7", "3"]
    for rows in ([{"case_id": "a"}, {}, {"row_id": "a"}], [{"case_id": "2"}, {}]):
        with pytest.raises(UserError, match="rows 1 and"):
            row_ids(rows)


# Split.

SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}


def many_rows() -> list[dict]:
    """60 genes of 1 to 60 rows, and chains of genes that share a prompt, word for word."""
    rng = random.Random(0)
    genes = [f"GENE{i}" for i in range(60) for _ in range(rng.choice([1, 2, 5, 20, 60]))]
    rows = [case(f"case {i}", gene, case_id=f"c{i}") for i, gene in enumerate(genes)]
    return rows + [case(f"shared {i // 3}", f"GENE{i}", case_id=f"s{i}") for i in range(30)]


def test_groups_and_copies_of_a_prompt_stay_on_one_side_of_the_split():
    rows = many_rows()
    split = split_by_group(rows, "gene", SHARES, 3)
    for what in (lambda row: row["gene"], messages_text):
        values = [{what(row) for row in part} for part in split.values()]
        assert sum(map(len, values)) == len(set.union(*values))
    assert all(abs(len(split[s]) / len(rows) - share) < 0.03 for s, share in SHARES.items())
    assert split != split_by_group(rows, "gene", SHARES, 4)
    again = split_by_group(random.Random(1).sample(rows, len(rows)), "gene", SHARES, 3)
    for side in SHARES:
        assert [row for row in rows if row in again[side]] == split[side]  # rows keep their order


def test_large_groups_reach_the_smaller_sides_and_no_side_stays_empty():
    """A split that always gives the large groups to training tests on rare genes alone."""
    rows = [case(f"{g} {i}", f"GENE{g}") for g in range(20) for i in range(5 + 15 * (g < 4))]
    tests = [split_by_group(rows, "gene", {"a": 0.5, "b": 0.5}, seed)["b"] for seed in range(20)]
    large = {f"GENE{g}" for g in range(4)}
    assert sum(bool(large & {row["gene"] for row in test}) for test in tests) >= 10
    few = [case(f"{g} {i}", f"GENE{g}") for g in range(3) for i in range(10)]
    assert all(split_by_group(few, "gene", SHARES, seed)["test"] for seed in range(5))


def test_a_split_that_makes_no_sense_is_refused():
    rows, odd = many_rows(), [case("a", "A"), case("b", "")]
    halves = {"a": 0.5, "b": 0.5}
    for given, shares, words in (
        (rows, {"a": 0.5, "b": 0.4}, "add up to 1"),
        (rows[:1], halves, "1 group"),
        (odd, halves, "row 2"),
    ):
        with pytest.raises(UserError, match=words):
            split_by_group(given, "gene", shares, 0)
