"""What a run takes: threads, and on a card what the formula says against counted bytes, measured
and published numbers."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import rftkit
from rftkit.cli import app
from rftkit.files import UserError, embedded_model, fetched_folder
from rftkit.training import memory, session
from rftkit.training.config import RunConfig
from rftkit.training.session import with_lora

MODELS, CARDS = memory.known("models"), memory.known("cards")
LLAMA_8B = SimpleNamespace(
    num_hidden_layers=32, hidden_size=4096, intermediate_size=14_336, num_attention_heads=32,
    num_key_value_heads=8, vocab_size=128_256, tie_word_embeddings=False,
)  # fmt: skip
ONE = dict(prompts_per_step=1, lora_rank=16)
TINY = dict(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, head_dim=32,
    intermediate_size=384, vocab_size=1000, tie_word_embeddings=True,
)  # fmt: skip


def test_the_shapes_have_the_parameters_that_their_makers_publish():
    """In billions, from the model cards."""
    published = {"Qwen3-0.6B": 0.6, "Qwen3-1.7B": 1.72, "Qwen3-4B": 4.02, "Qwen3-8B": 8.19}
    published |= {"Llama-3.2-1B": 1.24, "Llama-3.2-3B": 3.21, "Gemma-3-1B": 1.0, "Gemma-3-4B": 3.88}
    published |= {"SmolLM2-135M": 0.1345, "SmolLM2-1.7B": 1.71, "gpt-oss-20b": 20.9}
    weights = {n: memory.parts(m, RunConfig(), 1, 1)["weights"] / 2e9 for n, m in MODELS.items()}
    assert weights == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma3Text"])
@pytest.mark.parametrize("number", [4, 2])
def test_activations_are_what_a_model_keeps_for_its_backward_pass(family, number):
    """Counted tensor by tensor, as torch saves them; the formula is within -10 % and +35 %."""
    import torch
    import transformers

    made = getattr(transformers, f"{family}Config")(**TINY)
    model = transformers.AutoModelForCausalLM.from_config(made)
    model = model.to(torch.float32 if number == 4 else torch.bfloat16)
    model = with_lora(model, SimpleNamespace(lora_rank=16, init_adapter=None), "transformers")
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and len(tensor.shape) > 1 and tensor.numel() > 7_000:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(1000, (4, 100))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=number == 2),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        hidden = model.model.model(input_ids=ids, use_cache=False).last_hidden_state
    parts = memory.parts(made, RunConfig(**ONE), 60, 40, 4, number)
    assert hidden.requires_grad and 0.9 < parts["activations"] / sum(kept.values()) < 1.35


# Peak memory and tokens a second, qwen.readthedocs.io, "Speed Benchmark" of Qwen3 (transformers
# 4.51, bf16, one sequence of 2,048 new tokens on an H20): model, input tokens, MiB, tokens/s.
QWEN = [
    ("Qwen3-0.6B", 1, 1394, 58.57), ("Qwen3-1.7B", 1, 3412, 59.83), ("Qwen3-4B", 1, 7973, 45.94),
    ("Qwen3-8B", 1, 15_947, 45.32), ("Qwen3-4B", 30_720, 12_317, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prompt", "mib", "speed"), QWEN)
def test_weights_cache_and_sampling_are_as_qwen_measured_them(name, prompt, mib, speed):
    model, config = MODELS[name], RunConfig(**ONE, answers_per_prompt=2)
    parts = memory.parts(model, config, prompt, 2048)
    held = parts["weights"] + parts["KV cache"] / 2
    assert held == pytest.approx(mib * 2**20, rel=0.03)
    token = model.num_hidden_layers * memory.WAIT_SECONDS / 1.3  # without an adapter
    assert not speed or token * speed == pytest.approx(1, rel=0.03)


def test_memory_is_as_unsloth_publishes_it_or_above():
    """Unsloth's table for GRPO of Llama 3.1 8B, 8 completions of 20,000 tokens (release 2025-02-v2)
    and its VRAM requirements. What is not equal here is counted in fp32, and theirs in 16 bits."""
    config = RunConfig(prompts_per_step=1, answers_per_prompt=8, lora_rank=32)
    trl, four_bits = config, config.model_copy(update={"load_in_4bit": True, "engine": "unsloth"})
    plain, own = (memory.parts(LLAMA_8B, c, 0, 20_000, 8) for c in (trl, four_bits))
    assert plain["weights"] / 1e9 == pytest.approx(16, rel=0.03)
    assert plain["KV cache"] / 8e9 == pytest.approx(2.5, rel=0.06)  # theirs is of one completion
    assert own["weights"] / 1e9 == pytest.approx(6, rel=0.03)
    assert 1 <= plain["activations"] / 414e9 < 3 and 1 <= own["activations"] / 42e9 < 2
    assert 3 <= plain["logits"] / 78.3e9 < 3.2 and 3 <= own["logits"] / 9.8e9 < 3.2


def test_a_run_on_a_t4_fits_and_takes_about_as_long_as_unsloths_own():
    """Its Qwen3 (4B) notebook: 100 steps of 4 completions, at most 1,846 tokens, 2 h 54 min."""
    config = RunConfig(prompts_per_step=1, answers_per_prompt=4, lora_rank=32, beta=0)
    config = config.model_copy(update={"engine": "unsloth"})
    model, t4 = MODELS["Qwen3-4B"], CARDS["t4"]
    assert memory.peak(memory.parts(model, config, 202, 1846)) < t4.memory * 1e9 * memory.USABLE
    step = sum(memory.seconds(model, config, 202, 1846, 1, t4))
    assert 0.5 < step / 104 < 1.5


def command(*words):
    answer = CliRunner().invoke(app, ["plan", *words, "--json"])
    return answer.exit_code, json.loads(answer.stdout)


def test_what_does_not_fit_is_refused_with_the_nearest_settings_that_do(tmp_path):
    code, plan = command("unsloth/Qwen3-8B", "--gpu", "t4")
    assert (code, plan["fits"], plan["nearest"]) == (
        1,
        False,
        {"load_in_4bit": True, "micro_batch": 1},
    )
    code, plan = command("Qwen3-8B", "--gpu", "H100")
    assert code == 0 and plan["fits"] and plan["nearest"] == {}
    assert plan["usd"] == pytest.approx(CARDS["h100"].usd * plan["hours"])
    run = {"model": "Qwen3-4B", "task": "gene_ranking", "micro_batch": 64, "lora_rank": 16}
    (tmp_path / "run.json").write_text(json.dumps(run | {"max_completion_tokens": 512}))
    code, plan = command(str(tmp_path / "run.json"), "--gpu", "l4")
    assert code == 1 and list(plan["nearest"]) == ["micro_batch"]
    assert plan["nearest"]["micro_batch"] < 64 and plan["validations"] > 1
    (tmp_path / "run.json").write_text(json.dumps(run | plan["nearest"]))
    assert command(str(tmp_path / "run.json"), "--gpu", "l4")[0] == 0
    longer = dict(model="Qwen3-4B", task="gene_ranking", max_completion_tokens=600)
    nearest = rftkit.plan(RunConfig(**longer, engine="unsloth"), gpu="t4").nearest
    assert nearest["load_in_4bit"] and "max_completion_tokens" not in nearest  # it would do, too
    parts, once = (rftkit.plan(RunConfig(**longer), gpu=gpu) for gpu in ("t4", "h100"))
    assert parts.fits and parts.memory_gb["KV cache"] < once.memory_gb["KV cache"]  # in turns
    assert rftkit.plan("gpt-oss-20b", gpu="t4").nearest == {}  # nothing helps


def test_a_models_own_files_are_measured_and_every_card_is_listed():
    code, record = command("embedded:mini")
    assert code == 0 and [plan["gpu"] for plan in record["plans"]] == list(CARDS)
    own = rftkit.plan(RunConfig(task="gene_ranking"), gpu="t4")
    assert own.prompts == "measured" and 20 < own.prompt_tokens < 100 and own.micro_batch == 64
    text = CliRunner().invoke(app, ["plan", "embedded:mini", "--gpu", "t4"]).stdout
    assert "computed" in text and "KV cache" in text and "Colab" in text and "data sheet" in text


@pytest.mark.parametrize(("model", "gpu"), [("nobody/nothing", "t4"), ("Qwen3-4B", "k80")])
def test_an_unknown_model_or_card_is_refused_with_those_that_are_known(model, gpu):
    with pytest.raises(UserError, match="expected one of t4|one of Qwen3-0.6B"):
        rftkit.plan(model, gpu=gpu)


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_peak_memory_is_that_of_the_process_alone():
    ballast = b"x" * 400_000_000  # getrusage tells a child its parent's peak
    words = [sys.executable, "-c", "import rftkit; print(rftkit.environment.peak_memory_mb())"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 300 and ballast


STEP = """
import sys, torch
from types import SimpleNamespace
from rftkit.environment import peak_memory_mb
from rftkit.loading import load_model, model_folder
from rftkit.packing import token_logprobs
from rftkit.training import memory, session
from rftkit.training.config import RunConfig
from rftkit.training.session import with_lora
model, *_ = load_model(model_folder("smollm2")[0])
model = with_lora(model, RunConfig(lora_rank=16), "transformers")
n, before = int(sys.argv[1]), peak_memory_mb()
ids = torch.randint(1000, 5000, (n, 156))
logits = model(input_ids=ids, logits_to_keep=57, use_cache=False).logits[:, :-1].float()
(logits.logsumexp(-1) - logits.gather(-1, ids[:, 100:, None])[..., 0]).mean().backward()
parts = memory.parts(model.config, RunConfig(lora_rank=16), 100, 56, n, 4)
print((parts["activations"] + parts["logits"]) / 1e6 / (peak_memory_mb() - before))
"""


@pytest.mark.prove
@pytest.mark.skipif(not fetched_folder("smollm2").exists(), reason="rftkit fetch smollm2")
@pytest.mark.parametrize("answers", [4, 16])
def test_a_step_of_smollm2_takes_the_memory_that_the_formula_says(answers):
    """Resident memory on a CPU (1.3 and 1.1 on two cores of an Intel Xeon, 30 Nov 2026). glibc
    gives back what is freed only with small thresholds; by default it may keep 1.7 times that."""
    small = {f"MALLOC_{name}_THRESHOLD_": "131072" for name in ("MMAP", "TRIM")}
    words = [sys.executable, "-c", STEP, str(answers)]
    done = subprocess.run(words, env=os.environ | small, capture_output=True, text=True, check=True)
    assert 0.85 < float(done.stdout.split()[-1]) < 1.4


def test_threads_are_those_that_computed_quickest(monkeypatch):
    clock, threads = [0.0], [16]
    monkeypatch.setattr("torch.get_num_threads", lambda: threads[0])
    monkeypatch.setattr("torch.set_num_threads", lambda n: threads.__setitem__(0, n))
    monkeypatch.setattr(session.time, "perf_counter", lambda: clock[0])
    seconds = {1: 8.0, 2: 4.0, 4: 2.0, 8: 3.0, 16: 5.0}

    def model(input_ids):
        clock[0] += seconds[threads[0]]

    model.device = SimpleNamespace(type="cpu")
    policy = SimpleNamespace(model=model)
    assert session.quickest_threads(policy, "a/model") == (None, "")  # the suite sets them
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert session.quickest_threads(policy, str(embedded_model("mini"))) == (None, "")
    best, reason = session.quickest_threads(policy, "a/model")
    assert best == 4 and "2.00 s with 4" in reason and "5.00 s with 16" in reason
