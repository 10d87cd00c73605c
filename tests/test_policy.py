"""Loading and sampling: one meaning for every engine, and luck that nothing disturbs."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rftkit.files import UserError
from rftkit.policy import EndpointPolicy, choose_engine, load_policy, merged_adapter, model_folder
from rftkit.records import Sample, SamplingConfig
from rftkit.task import load_task


@pytest.fixture(scope="module")
def prompts():
    return [row["messages"] for row in load_task("gene_ranking").rows("validation")[:12]]


def texts(groups):
    return [[s.reasoning + "|" + s.output_text for s in group] for group in groups]


def test_batch_size_does_not_change_an_answer(mini, prompts):
    config = SamplingConfig(max_new_tokens=40, seed=3)
    whole = texts(mini.sample(prompts, 3, config))
    mini.batch_size = 5
    try:
        apart = texts(mini.sample(prompts, 3, config))
    finally:
        mini.batch_size = 512
    assert whole == apart
    assert len({t for group in whole for t in group}) > 12  # they are not all one answer


def test_seed_repeats_and_another_seed_differs(mini, prompts):
    first = texts(mini.sample(prompts, 2, SamplingConfig(max_new_tokens=40, seed=1)))
    again = texts(mini.sample(prompts, 2, SamplingConfig(max_new_tokens=40, seed=1)))
    other = texts(mini.sample(prompts, 2, SamplingConfig(max_new_tokens=40, seed=2)))
    assert first == again != other


def test_first_samples_stay_when_more_are_drawn(mini, prompts):
    two = texts(mini.sample(prompts, 2, SamplingConfig(max_new_tokens=40)))
    five = texts(mini.sample(prompts, 5, SamplingConfig(max_new_tokens=40)))
    assert two == [group[:2] for group in five]


def test_greedy_agrees_with_transformers_generate(mini, prompts):
    ours = mini.sample(prompts, 1, SamplingConfig(temperature=0, max_new_tokens=40))
    batch = mini.tokenizer(
        [mini.render(p) for p in prompts], return_tensors="pt", padding=True,
        add_special_tokens=False,
    )  # fmt: skip
    out = mini.model.generate(**batch, max_new_tokens=40, do_sample=False)
    theirs = mini.tokenizer.batch_decode(
        out[:, batch.input_ids.shape[1] :], skip_special_tokens=True
    )
    assert [s[0].output_text for s in ours] == [Sample.from_text(t).output_text for t in theirs]


def test_the_ready_made_mask_changes_no_answer(mini, prompts, monkeypatch):
    """Prompts of several lengths: padding must stay unseen, to the last bit as with the model's
    own mask."""
    from rftkit import policy as decoding

    config, shapes = SamplingConfig(max_new_tokens=40, seed=8), []
    made = decoding.attended

    def looked(model, mask):
        shapes.append(made(model, mask).dim())
        return made(model, mask)

    monkeypatch.setattr(decoding, "attended", looked)
    ready = texts(mini.sample(prompts, 4, config))
    monkeypatch.setattr(decoding, "attended", lambda model, mask: mask)
    assert ready == texts(mini.sample(prompts, 4, config))
    assert 4 in shapes, "no prompt was padded: nothing was compared"


def test_sampling_follows_the_models_distribution(mini, prompts):
    """Frequencies of the first tokens against the softmax itself, within four standard errors."""
    import torch

    n = 2_000
    drawn = mini.sample(prompts[:1], n, SamplingConfig(max_new_tokens=3, seed=5))[0]
    ids = mini.tokenizer(mini.render(prompts[0]) + "<think>", return_tensors="pt",
                         add_special_tokens=False)  # fmt: skip
    probability = torch.softmax(mini.model(**ids).logits[0, -1], -1)
    best = int(probability.argmax())
    word = mini.tokenizer.decode([best])
    share = sum(s.reasoning.startswith(word) for s in drawn) / n
    expected = float(probability[best])
    assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 0.01


def test_prefill_is_part_of_what_was_said(mini, prompts):
    config = SamplingConfig(temperature=0, max_new_tokens=40, prefill="<think>Common first.")
    for group in mini.sample(prompts, 1, config):
        assert group[0].reasoning.startswith("Common first.")


def test_a_cut_answer_says_so(mini, prompts):
    samples = mini.sample(prompts, 1, SamplingConfig(max_new_tokens=4))
    assert {s.finish_reason for group in samples for s in group} == {"length"}
    assert all(s.output_text == "" and s.completion_tokens == 4 for g in samples for s in g)


def test_stop_text_ends_an_answer(mini, prompts):
    config = SamplingConfig(temperature=0, max_new_tokens=40, stop=["</think>"])
    for group in mini.sample(prompts, 1, config):
        assert group[0].output_text == "" and group[0].finish_reason == "stop"


def test_top_p_keeps_the_likeliest_token_alone_when_tiny(mini, prompts):
    narrow = texts(mini.sample(prompts, 2, SamplingConfig(top_p=1e-6, max_new_tokens=40)))
    greedy = texts(mini.sample(prompts, 1, SamplingConfig(temperature=0, max_new_tokens=40)))
    assert narrow == [group * 2 for group in greedy]


def test_merging_for_sampling_leaves_the_weights_as_they_were():
    import torch
    from peft import LoraConfig, get_peft_model

    from rftkit.policy import load_model

    model, _, _, _ = load_model(model_folder("embedded:mini")[0])
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with merged_adapter(model):
        changed = any(
            not torch.equal(v, before[k]) for k, v in model.state_dict().items() if "base" in k
        )
    assert changed
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unknown_models_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="embedded:giant"):
        load_policy("embedded:giant")
    with pytest.raises(UserError, match="config.json"):
        load_policy(str(tmp_path))
    with pytest.raises(UserError, match="could not be loaded"):
        load_policy("nobody/nothing-of-this-name")
    with pytest.raises(UserError, match="vllm"):
        choose_engine("vllm", "cpu")


def test_unsloth_after_trl_is_a_clear_error():
    code = (
        "import trl, sys\n"
        "from rftkit.policy import load_policy\n"
        "try:\n    load_policy('embedded:mini', engine='unsloth')\n"
        "except ValueError as e:\n    print(type(e).__name__, e); sys.exit(0)\n"
        "sys.exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    assert "UserError" in done.stdout and "trl" in done.stdout and "new process" in done.stdout


def test_unsloth_answers_as_transformers_does():
    pytest.importorskip("importlib.metadata").version("unsloth")
    code = (
        "from rftkit.policy import load_policy\n"
        "from rftkit.data import SamplingConfig\n"
        "from rftkit.task import load_task\n"
        "import json\n"
        "p = load_policy('embedded:mini', engine='unsloth')\n"
        "rows = load_task('gene_ranking').rows('validation')[:8]\n"
        "out = p.sample([r['messages'] for r in rows], 1,\n"
        "               SamplingConfig(temperature=0, max_new_tokens=40))\n"
        "print('RESULT', json.dumps([p.engine, [g[0].output_text for g in out]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RESULT" in done.stdout, done.stderr[-1500:]
    engine, answers = json.loads(done.stdout.split("RESULT ")[1].splitlines()[0])
    assert engine == "unsloth"
    rows = load_task("gene_ranking").rows("validation")[:8]
    plain = load_policy("embedded:mini", engine="transformers").sample(
        [r["messages"] for r in rows], 1, SamplingConfig(temperature=0, max_new_tokens=40)
    )
    assert answers == [g[0].output_text for g in plain]


class Stub(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "fail" in asked["messages"][-1]["content"]:
            self.send_response(400)
            self.end_headers()
            return
        said = {"role": "assistant", "content": f"<think>hm</think>{asked['seed']}"}
        body = {
            "id": "x", "object": "chat.completion", "created": 0, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "length", "message": said}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }  # fmt: skip
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


def test_endpoint_gives_the_same_samples_and_failures_lose_nothing():
    server = HTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        policy = EndpointPolicy("m", "endpoint", f"http://127.0.0.1:{server.server_port}/v1")
        asks = [[{"role": "user", "content": t}] for t in ("one", "fail", "three")]
        groups = policy.sample(asks, 2, SamplingConfig(seed=10))
    finally:
        server.shutdown()
    assert [len(g) for g in groups] == [2, 2, 2]
    assert [s.output_text for s in groups[0]] == ["10", "11"]
    assert groups[0][0].reasoning == "hm" and groups[0][0].finish_reason == "length"
    assert [s.finish_reason for s in groups[1]] == ["error", "error"]
    assert "BadRequestError" in groups[1][0].errors[0]
