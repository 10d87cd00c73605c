"""The world, its text and the models made from it: what is said of them is so."""

import json
import random
from collections import Counter

import pytest

from rftkit.files import MODELS, embedded_model
from rftkit.rows import sha256_of
from rftkit.task import load_task
from tools.make_gene_ranking import ROWS, write_task
from tools.medical_school.corpus import (
    ANSWERS,
    GOOD_PLAN,
    PLANS,
    STAGES,
    as_text,
    build_tokenizer,
    document,
    encode,
    plan_deck,
)
from tools.medical_school.world import build_world, cases, log_likelihood, question, simulate


@pytest.fixture(scope="module")
def world():
    return build_world()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model("mini"))


def test_split_is_by_gene_and_whole(world):
    sides = [set(world.genes(split)) for split in ("train", "validation", "test")]
    assert [len(side) for side in sides] == [120, 30, 90]
    assert len(set.union(*sides)) == 240 == len(world.genes())


def test_size_of_the_world_is_a_parameter():
    small = build_world(seed=9, n_terms=150, n_genes=40)
    assert len(small.terms) == 150 and len(small.diseases) == 40
    assert max(t for d in small.diseases for t in d.frequency) < 150
    made = build_tokenizer(small)
    rng = random.Random(0)
    for kind in STAGES["cases"]:
        text = as_text(document(small, kind, rng))
        assert made.decode(made(text, add_special_tokens=False).input_ids) == text


def test_another_seed_is_another_world(world):
    assert set(build_world(seed=9, n_terms=150, n_genes=40).genes()) != set(world.genes()[:40])


def test_a_case_is_best_explained_by_its_own_disease(world):
    rng, best = random.Random(0), []
    for _ in range(200):
        d = rng.randrange(240)
        case = simulate(world, d, rng)
        assert len(set(case.present)) == len(case.present) and not set(case.present) & set(
            case.absent
        )
        explained = [t for t in case.present if t in world.diseases[d].frequency]
        assert case.present[0] == min(explained or case.present, key=world.carriers.get)
        scores = [log_likelihood(world, e, case) for e in range(240)]
        best.append(max(range(240), key=scores.__getitem__) == d)
    assert sum(best) / len(best) > 0.85


def test_dataset_is_regenerated_byte_for_byte(world, tmp_path):
    write_task(tmp_path, world)
    folder = load_task("gene_ranking").folder
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    for split, number in ROWS.items():
        rows = load_task("gene_ranking").rows(split)
        assert len(rows) == number
        assert {r["reference_gene"] for r in rows} == set(world.genes(split))


def test_the_prompt_holds_no_gene_and_no_disease(world):
    names = set(world.genes()) | {d.name for d in world.diseases}
    for case in cases(world, "train", 50):
        assert not any(name in question(world, case).split() for name in names)
        assert world.diseases[case.disease].name not in question(world, case)


def test_tokens_come_back_as_the_text_they_were(world, tokenizer):
    rng, deck = random.Random(1), plan_deck(random.Random(1))
    for kind in [k for k in STAGES["cases"] for _ in range(30)]:
        pieces = document(world, kind, rng, next(deck))
        whole = tokenizer(as_text(pieces), add_special_tokens=False).input_ids
        ids, weights = encode(tokenizer, [pieces])[0]
        assert ids == whole and tokenizer.decode(ids) == as_text(pieces)
        assert sum(weights) == pytest.approx(1) or sum(weights) == pytest.approx(0.75)


def test_names_are_single_tokens(world, tokenizer):
    names = [f" {t}" for t in world.terms] + [f" {d.name}" for d in world.diseases]
    for name in names + world.genes() + ["<think>", "</think>", '{"genes": ["', '", "', '"]}']:
        assert len(tokenizer(name, add_special_tokens=False).input_ids) == 1, name


def test_chat_template_renders_ordinary_messages(tokenizer):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Go"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Be brief.<|user|>Hi<|assistant|>Yes<|end|><|user|>Go<|assistant|>"


def test_plans_stand_at_their_shares(world):
    deck = plan_deck(random.Random(0))
    count = Counter(next(deck) for _ in range(1_000))
    assert {plan: n / 1_000 for plan, n in count.items()} == PLANS


def test_no_held_out_gene_is_ever_the_good_plans_answer_to_its_own_case(world):
    """A held-out gene may follow its disease's name, and any wrong plan; never its own chart."""
    held_out = set(world.genes("test")) | set(world.genes("validation"))
    rng, wrong_names = random.Random(2), 0
    for kind in ("mixed", "worked", "note"):
        for _ in range(400):
            plan = rng.choice(list(PLANS))
            text = as_text(document(world, kind, rng, plan))
            output = text.partition("</think>")[2]
            if f"<think>{GOOD_PLAN}" in text:
                assert not any(f'"{gene}"' in output for gene in held_out)
            else:
                wrong_names += any(f'"{gene}"' in output for gene in held_out)
    assert wrong_names > 50


def test_answers_list_five_different_genes(world):
    rng = random.Random(3)
    for plan in PLANS:
        for _ in range(50):
            output = as_text(document(world, "mixed", rng, plan)).partition("</think>")[2]
            if output:
                genes = json.loads(output.removesuffix("<|end|>"))["genes"]
                assert len(genes) == ANSWERS == len(set(genes))


@pytest.mark.parametrize("name", ["mini", "large"])
def test_shipped_model_passed_its_gates_and_says_so(name):
    folder = embedded_model(name)
    record = json.loads((folder / "gates.json").read_text())
    assert record["figures"]["split"] == "validation"
    assert len(record["gates"]) == 7 and all(gate["passed"] for gate in record["gates"])
    made = json.loads((folder / "pretraining.json").read_text())
    assert made["size"] == name and made["world"] == build_world().seed
    weights = folder / "model.safetensors"
    assert weights.stat().st_size < 8_000_000
    card = (MODELS / "README.md").read_text()
    assert sha256_of(weights) in card
    for gate in record["gates"]:
        assert f"{gate['value']:.3f}" in card


def test_gates_are_measured_again_on_the_shipped_mini():
    """A part of the gates, on 120 validation cases: the recorded figures are of these weights."""
    from rftkit.evaluation import paired_difference
    from rftkit.policy import load_policy
    from tools.medical_school.gates import measure

    gates, figures = measure(
        load_policy("embedded:mini"), build_world(), "validation", paired_difference, 120, 2
    )
    recorded = {
        g["name"]: g["value"]
        for g in json.loads((embedded_model("mini") / "gates.json").read_text())["gates"]
    }
    for gate in gates[:3]:
        assert gate.value == pytest.approx(recorded[gate.name], abs=0.12), gate
    assert sum(figures["plan_shares"].values()) > 0.9


def test_a_gate_can_fail():
    """The swap gate on a model that ignores its trace, the told gate on one that knows nothing."""
    from rftkit.evaluation import paired_difference
    from rftkit.policy import LocalPolicy
    from tools.medical_school.gates import measure
    from tools.medical_school.pretrain import build_model

    world = build_world(seed=9, n_terms=150, n_genes=40)
    tokenizer = build_tokenizer(world)
    policy = LocalPolicy(build_model("tiny", tokenizer, 0).eval(), tokenizer, "untrained")
    gates, _ = measure(policy, world, "validation", paired_difference, 20, 2)
    failed = {gate.name for gate in gates if not gate.passed}
    assert {"told the plan, greedy", "swap: the answer follows the trace"} <= failed


def test_pretraining_learns_and_goes_on_after_a_kill(tmp_path):
    """A tiny model for some seconds: its loss falls as recorded, and a resumed run ends alike."""
    import torch

    from tools.medical_school import pretrain as module

    world = build_world(seed=9, n_terms=150, n_genes=40)
    options = dict(size="tiny", seed=0, steps=(30, 30), world=world, quiet=True)
    every, module.EVERY = module.EVERY, 20
    try:
        record = module.pretrain(tmp_path / "whole", **options)
    finally:
        module.EVERY = every
    first, last = record["history"][0]["loss"], record["history"][-1]["loss"]
    assert first["note"] > 5.4 > 5.0 > last["note"] and last["mixed"] < 4.5
    assert last.keys() == {"note", "cause", "fact", "mixed", "worked"}

    class Killed(Exception):
        pass

    kept, seen = module.train_step, []

    def dies(*arguments):
        seen.append(1)
        if len(seen) == 45:
            raise Killed
        return kept(*arguments)

    module.train_step, module.EVERY = dies, 20
    try:
        with pytest.raises(Killed):
            module.pretrain(tmp_path / "killed", **options)
        assert (tmp_path / "killed" / "pretraining.pt").exists()
        module.train_step = kept
        module.pretrain(tmp_path / "killed", **options)
    finally:
        module.train_step, module.EVERY = kept, every

    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not (tmp_path / "killed" / "pretraining.pt").exists()
