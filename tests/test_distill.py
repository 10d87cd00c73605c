"""`rftkit distill`: a small student learns what the labels say, and loads like any model."""

import json

import pytest
import torch

from rftkit import load_policy, load_task, read_rows, write_rows
from rftkit.distill import Distilling, completion_loss, distill, new_student, sft_examples
from rftkit.files import UserError
from rftkit.label import Labelling, label
from rftkit.policy import Prompt
from tools.make_gene_pool import pool_rows

SMALL = dict(width=32, layers=1, batch=8)


def labels_of(path, count=8):
    """Rows of the gene task, each with its right gene as label."""
    rows = load_task("gene_ranking").rows("train")[:count]
    genes = ({"completion": json.dumps({"genes": [row["reference_gene"]]})} for row in rows)
    write_rows(path, [row | completion for row, completion in zip(rows, genes)])
    return path


def test_a_student_learns_its_labels_and_labels_itself(tmp_path, run):
    labels, folder = labels_of(tmp_path / "labels.jsonl"), tmp_path / "student"
    words = ["--width", 32, "--layers", 1, "--batch", 8, "--epochs", 120, "--learning-rate", 0.01]
    code, out, _ = run("distill", labels, "--out", folder, *words, "--json")
    record = json.loads(out)
    assert code == 0 and (record["rows"], record["steps"]) == (8, 120)
    assert record == json.loads((folder / "student.json").read_text()) and record["loss"] < 0.1
    asked = Labelling(labels, str(folder), tmp_path / "again.jsonl", task="gene_ranking")
    assert label(asked) == {"rows": 8, "labelled": 8, "failed": 0}
    learned, again = read_rows(labels), read_rows(asked.out)
    assert [r["completion"] for r in again] == [r["completion"] for r in learned]
    words = ["--task", "gene_ranking", "--samples", 1, "--max-tokens", 32, "--json"]
    code, out, _ = run("evaluate", labels, "--model", folder, *words, "--out", tmp_path / "table")
    assert json.loads(out)["systems"][0]["greedy"]["top1"] == 1.0


def test_the_form_shrinks_and_the_mini_s_share_is_a_third_at_most(tmp_path):
    model = new_student(Distilling(tmp_path, tmp_path)).model
    config, mini = model.config, load_policy("embedded:mini").model
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 2)
    assert config.intermediate_size == 192 and config.head_dim == mini.config.head_dim
    assert 3 * model.num_parameters() <= mini.num_parameters()


def test_the_loss_is_that_of_the_completion_alone(tmp_path):
    asked = Distilling(labels_of(tmp_path / "labels.jsonl", 3), tmp_path / "s", **SMALL)
    torch.manual_seed(0)
    policy = new_student(asked)
    examples = sft_examples(policy, asked.labels)
    summed, count = torch.zeros(()), 0
    for prompt, end in examples:  # one by one, without padding
        logits = policy.model(torch.tensor([prompt + end])).logits[0, len(prompt) - 1 : -1]
        summed += torch.nn.functional.cross_entropy(logits, torch.tensor(end), reduction="sum")
        count += len(end)
        assert end[-1] == policy.tokenizer.eos_token_id
    loss = completion_loss(policy.model, examples)
    assert loss.item() == pytest.approx(summed.item() / count)


def test_the_same_seed_gives_the_same_student(tmp_path):
    labels = labels_of(tmp_path / "labels.jsonl")
    logits = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        distill(Distilling(labels, tmp_path / name, epochs=2, seed=seed, **SMALL))
        policy = load_policy(str(tmp_path / name))
        prompt = policy.encode([Prompt(read_rows(labels)[0])])
        logits.append(policy.model(torch.tensor(prompt)).logits)
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_what_cannot_be_learned_from_is_refused(tmp_path):
    labels = labels_of(tmp_path / "labels.jsonl", 3)
    write_rows(tmp_path / "bare.jsonl", [*read_rows(labels), {"prompt": "no label"}])
    with pytest.raises(UserError, match="row 4 has no completion: label"):
        distill(Distilling(tmp_path / "bare.jsonl", tmp_path / "s", **SMALL))
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": "rftkit/models/mini"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="an adapter"):
        distill(Distilling(labels, tmp_path / "s", str(tmp_path / "adapter"), **SMALL))
    with pytest.raises(UserError, match="there already"):
        distill(Distilling(labels, tmp_path / "adapter", **SMALL))


def test_a_full_disk_leaves_no_half_student(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    labels, student = labels_of(tmp_path / "labels.jsonl", 3), tmp_path / "student"
    monkeypatch.setattr("rftkit.distill.write_json", full)
    with pytest.raises(OSError):
        distill(Distilling(labels, student, epochs=1, **SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["labels.jsonl"]
    monkeypatch.undo()
    assert distill(Distilling(labels, student, epochs=1, **SMALL))["rows"] == 3


def test_the_pool_has_every_gene_and_no_prompt_of_the_task():
    rows, task = pool_rows(300), load_task("gene_ranking")
    asked = {row["messages"][0]["content"] for row in rows}
    splits = map(task.rows, ("train", "validation", "test"))
    known = {row["messages"][0]["content"] for own in splits for row in own}
    assert len({row["reference_gene"] for row in rows}) == 240
    assert len(asked) == 300 and not asked & known and rows[:50] == pool_rows(50)
