"""`rftkit export`: what is taken out answers like the run, and what does not is named."""

import errno
import json
import shutil
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from rftkit import RunConfig, UserError, export, exporting, train
from rftkit.exporting import whole_text
from rftkit.files import fetched_folder
from rftkit.gguf_file import llama_server, write_gguf
from rftkit.policy import LocalPolicy, Prompt
from rftkit.records import SamplingConfig

LLAMA = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
FORMS = ["adapter", "merged", pytest.param("gguf", marks=LLAMA)]
TINY = dict(
    task="gene_ranking", steps=2, prompts_per_step=2, answers_per_prompt=4, eval_every=0,
    max_completion_tokens=40, gate="off", learning_rate=0.03,
)  # fmt: skip
PROVED = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(RunConfig(**TINY), tmp_path_factory.mktemp("export") / "run", say=print)


@pytest.fixture(scope="module")
def merged(trained):
    return exported(trained, "merged")


@pytest.fixture(scope="module")
def gguf_file(trained):
    return exported(trained, "gguf")


def exported(trained, to):
    folder = trained.out.with_name(to)
    export(trained, to, folder, say=lambda text: None)
    return folder


@pytest.mark.parametrize("to", FORMS)
def test_what_is_exported_answers_like_the_run(trained, to):
    report = export(trained, to, trained.out.with_name(to), prove=PROVED)
    assert report["equal"] == report["of"] == PROVED and report["mismatches"] == []
    assert report["logit_difference_from_base"] > 0.1  # the adapter does something
    if to != "gguf":
        assert report["max_logit_difference"] < 1e-3
    score = report["score"]
    assert score["trained"] == score["exported"] and score["difference"]["high"] == 0
    files = [*trained.out.with_name(to).iterdir()]
    assert len({path.stat().st_mode for path in files}) == 1  # who may read one may read all
    names = {path.name for path in files}
    weights = {"adapter": "adapter_model", "merged": "model"}.get(to)
    expected = {f"{weights}.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert names >= (expected if weights else {"model.gguf", "Modelfile"}) | {"README.md"}


def damage_merged(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"].mul_(-1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def damage_gguf(folder):
    import gguf

    reader = gguf.GGUFReader(folder / "model.gguf", "r+")
    (tensor,) = [t for t in reader.tensors if t.name == "blk.1.attn_q.weight"]
    tensor.data[:] = -tensor.data
    tensor.data.flush()


@pytest.mark.parametrize(
    ("to", "damage"), [("merged", damage_merged), pytest.param("gguf", damage_gguf, marks=LLAMA)]
)
def test_a_damaged_tensor_is_seen_and_ends_in_1(trained, run, tmp_path, to, damage):
    folder = shutil.copytree(exported(trained, to), tmp_path / to)
    damage(folder)
    command = ["export", trained.out, "--to", to, "--out", folder, "--prove", PROVED]
    code, out, err = run(*command, "--json")
    report = json.loads(out)
    assert code == 1 and report["equal"] < report["of"] == PROVED
    first = report["mismatches"][0]
    assert first["trained"] != first["exported"] and first["trained"][0:1] != first["exported"][0:1]
    assert f"row {first['row_id']}: the texts part at character {first['at']}" in err
    assert max(found["margin"] for found in report["mismatches"]) > 0.1  # no tie
    assert report["max_logit_difference"] is None or report["max_logit_difference"] > 0.1
    code, out, _ = run(*command)
    assert code == 1 and out.startswith(f"{report['equal']} of {PROVED} answers equal")


def test_the_text_and_the_exit_code_of_a_good_export(trained, run, merged):
    command = ["export", trained.out, "--to", "merged", "--out", merged]
    code, out, err = run(*command, "--prove", 2)
    assert code == 0 and out.startswith("2 of 2 answers equal\nmax logit difference ")
    assert "grade, difference: " in out and "stands there" in err
    assert "proving on 2 rows: the task's test rows" in err


def test_an_export_is_written_once_and_no_other_folder_is_touched(trained, run, merged, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in merged.iterdir()}
    said = []
    export(trained, "merged", merged, say=said.append)
    assert "stands there" in said[0]
    assert before == {path.name: path.stat().st_mtime_ns for path in merged.iterdir()}
    with pytest.raises(UserError, match="not this run as adapter: name another"):
        export(trained, "adapter", merged)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        export(trained, "merged", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="no training.json, expected a finished run"):
        export(tmp_path, "merged", tmp_path / "out")
    with pytest.raises(UserError, match='to: "onnx", expected one of adapter, merged, gguf'):
        export(trained, "onnx", tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "no space"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_what_cannot_be_written_leaves_nothing(trained, monkeypatch, tmp_path, error, raised):
    def fail(model, tokenizer, file):
        file.write_text("half")
        raise error

    monkeypatch.setattr(exporting, "write_gguf", fail)
    (tmp_path / ".out.writing").mkdir()  # of an export that was killed
    with pytest.raises(raised):
        export(trained, "gguf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_servers_sample_what_was_merged(merged):
    assert json.loads((merged / "generation_config.json").read_text())["do_sample"] is True


def test_servers_know_how_an_answer_is_read(merged):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    said, led = '<think>a</think>{"genes": []}<|end|>', "<|user|>x<|assistant|>"
    read = tokenizer.parse_response(said, tokenizer.response_template, prefix=led)
    assert read == {"role": "assistant", "thinking": "a", "content": '{"genes": []}'}


@pytest.mark.parametrize("to", FORMS)
def test_the_card_says_what_it_is(trained, to):
    card = (exported(trained, to) / "README.md").read_text()
    assert card.startswith("---\nbase_model: embedded:mini\n")
    for words in ('task "gene_ranking"', 'grader "gene_rank"', "2 steps of GRPO", "Licence: "):
        assert words in card
    assert "| learning_rate | 0.03 |" in card and str(trained.out.parent) not in card


@LLAMA
def test_the_modelfile_holds_the_template_and_every_end(gguf_file):
    text = (gguf_file / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ")
    system, user = "<|system|>{{ .System }}", "<|user|>{{ .Prompt }}<|assistant|>"
    assert f"{{{{ if .System }}}}{system}{user}{{{{ else }}}}{user}{{{{ end }}}}" in text
    assert 'PARAMETER stop "<|end|>"' in text and "PARAMETER num_predict 40" in text


@LLAMA
def test_the_proof_asks_the_endpoint_that_serves_it(trained, gguf_file, monkeypatch):
    with llama_server(gguf_file / "model.gguf") as served:
        monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
        report = export(trained, "gguf", gguf_file, prove=PROVED, endpoint="gguf")
    assert report["equal"] == PROVED
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr("openai._constants.INITIAL_RETRY_DELAY", 0.01)
    with pytest.raises(UserError, match="endpoint:gguf: no answer .*is it served"):
        export(trained, "gguf", gguf_file, prove=1, endpoint="gguf")


@pytest.mark.parametrize(("package", "form"), [("gguf", "gguf"), ("xllamacpp", "gguf")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    trained, monkeypatch, tmp_path, package, form
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r'pip install "rftkit\[export\]"'):
        export(trained, form, tmp_path / "out", prove=1)


@LLAMA
def test_a_torn_file_is_told(gguf_file, tmp_path):
    torn = tmp_path / "model.gguf"
    torn.write_bytes((gguf_file / "model.gguf").read_bytes()[:100_000])
    with pytest.raises(UserError, match="llama.cpp cannot load it"):
        with llama_server(torn):
            pass


def small(kind, tokenizer, **settings):
    """A random model of a family, whose likeliest tokens are far apart."""
    import torch
    import transformers

    torch.manual_seed(0)
    form = dict(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.3, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**form | settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return LocalPolicy(model, tokenizer, kind)


SLOWED = dict(
    rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0,
    high_freq_factor=4.0, original_max_position_embeddings=32,
)  # fmt: skip


@LLAMA
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"attention_bias": True, "rope_parameters": SLOWED}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
    ],
)
def test_each_family_answers_alike_in_llama_cpp(mini, genes, tmp_path, kind, settings):
    policy = small(kind, mini.tokenizer, **settings)
    write_gguf(policy.model, policy.tokenizer, tmp_path / "model.gguf")
    asked = list(map(Prompt, genes[1][:4])), 1, SamplingConfig(temperature=0, max_new_tokens=10)
    ours = [whole_text(sample) for [sample] in policy.sample(*asked)]
    with llama_server(tmp_path / "model.gguf") as served:
        theirs = [whole_text(sample) for [sample] in served.sample(*asked)]
    assert ours == theirs and len(set(ours)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, 'model_type "mistral", expected llama, qwen2, qwen3'),
        ({"layer_types": ["sliding_attention"]}, "full attention"),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'rope_type "yarn", expected default'),
        ({"tokenizer": '"add_prefix_space":true'}, "expected a known byte-level BPE"),
        ({"tokenizer": '"type":"WordPiece"'}, "WordPiece"),
    ],
)
def test_what_gguf_is_not_written_for_is_refused_with_another_way(
    mini, tmp_path, monkeypatch, changes, message
):
    pytest.importorskip("gguf")
    text = mini.tokenizer.backend_tokenizer.to_str()
    if change := changes.pop("tokenizer", None):
        old = {"add": '"add_prefix_space":false', "typ": '"type":"BPE"'}[change[1:4]]
        assert old in text
        text = text.replace(old, change)
    tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: text))
    for name, value in changes.items():
        monkeypatch.setattr(type(mini.model.config), name, value, raising=False)
        monkeypatch.setitem(mini.model.config.__dict__, name, value)
    with pytest.raises(UserError, match=message) as refused:
        write_gguf(mini.model, tokenizer, tmp_path / "model.gguf")
    assert "convert_hf_to_gguf.py" in str(refused.value)


@LLAMA
@pytest.mark.prove
@pytest.mark.skipif(
    not fetched_folder("smollm2").exists(), reason="smollm2 is not here: `rftkit fetch smollm2`"
)
def test_the_small_real_model_is_the_same_outside(tmp_path):
    settings = {"task": "stock", "model": "smollm2", "method": "sft", "learning_rate": 2e-3}
    run = train(RunConfig(**TINY | settings), tmp_path / "run", say=print)
    for to in ("adapter", "merged", "gguf"):
        report = export(run, to, tmp_path / to, prove=12)
        assert report["equal"] == report["of"] == 12, to
        assert report["logit_difference_from_base"] > 0.1
