"""Loading and sampling: one meaning for every engine, and uniform samples that nothing disturbs."""

import gc
import json
import shutil
import sys
import weakref
from functools import partial
from types import SimpleNamespace

import httpx
import openai
import pytest

from rftkit import decoding, policy
from rftkit.files import UserError, embedded_model
from rftkit.loading import check_weights, choose_engine, load_model, load_tokenizer, model_folder
from rftkit.policy import EndpointPolicy, Prompt, load_policy, merged_adapter
from rftkit.records import Sample, SamplingConfig
from rftkit.task import load_task

FORTY = SamplingConfig(max_new_tokens=40)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=40)


@pytest.fixture(scope="module")
def prompts():
    return [row["messages"] for row in load_task("gene_ranking").rows("validation")[:12]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole adapter for the mini."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules="all-linear")
    model = get_peft_model(load_policy("embedded:mini").model, lora)
    model.peft_config["default"].base_model_name_or_path = "embedded:mini"
    model.save_pretrained(folder := tmp_path_factory.mktemp("whole") / "adapter")
    return folder


@pytest.fixture
def adapter(tmp_path, whole):
    return shutil.copytree(whole, tmp_path / "run" / "adapter")


def texts(groups):
    return [[s.reasoning + "|" + s.output_text for s in group] for group in groups]


def test_neither_batch_size_nor_number_of_samples_changes_a_completion(mini, prompts, monkeypatch):
    whole = texts(mini.sample(prompts, 5, FORTY))
    assert len({text for group in whole for text in group}) > 12
    monkeypatch.setattr(mini, "batch_size", 25)
    assert texts(mini.sample(prompts, 5, FORTY)) == whole
    assert texts(mini.sample(prompts, 2, FORTY)) == [group[:2] for group in whole]
    assert texts(mini.sample(prompts, 2, SamplingConfig(max_new_tokens=40, seed=2))) != whole


@pytest.mark.parametrize("shortcut", ["attended", "give_room"])
def test_a_shortcut_of_decoding_changes_no_completion(mini, prompts, monkeypatch, shortcut):
    """The ready-made mask and the cache's spare room, against what the model does by itself."""
    import torch

    config, calls = SamplingConfig(max_new_tokens=50, seed=8), []
    quick = getattr(decoding, shortcut)
    monkeypatch.setattr(decoding, shortcut, lambda *given: calls.append(given) or quick(*given))
    ready = texts(mini.sample(prompts, 4, config))
    slow = {
        "attended": lambda model, mask, lanes, n: torch.cat([mask, mask.new_ones(len(mask), n)], 1)
    }
    monkeypatch.setattr(decoding, shortcut, slow.get(shortcut, lambda *given: None))
    assert texts(mini.sample(prompts, 4, config)) == ready
    assert shortcut == "give_room" or quick(*calls[0]).dim() == 4, "no prompt was padded"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_completions_beside_each_other_are_those_that_stand_apart(
    mini, prompts, monkeypatch, attention
):
    """Some end early, and rows leave: each still sees its prompt and itself alone."""
    monkeypatch.setattr(mini.model.config, "_attn_implementation", attention)
    config, found = SamplingConfig(max_new_tokens=50, seed=4), []
    for beside in (False, True):
        monkeypatch.setattr(decoding, "side_by_side", lambda *given, beside=beside: beside)
        found.append(texts(mini.sample(prompts, 4, config)))
    assert found[0] == found[1]


@pytest.mark.parametrize("n", [1, 4])
def test_a_head_that_prompts_share_is_read_once_and_changes_no_completion(
    mini, prompts, monkeypatch, n
):
    config, found = SamplingConfig(max_new_tokens=50, seed=4), []
    for least in (2, 10_000):  # tokens that count as a long head
        monkeypatch.setattr(decoding, "LONG_HEAD", least)
        heads = [decoding.shared_head(mini.encode(part)) for part in (prompts, prompts[:1])]
        assert heads == [heads[0], 0] and (heads[0] >= 2) == (least == 2)
        found.append(texts(mini.sample(prompts, n, config)))
    assert found[0] == found[1]


def test_a_cache_with_room_copies_no_token_twice():
    import torch

    grown = [torch.randn(3, 2, 5, 4)]
    for _ in range(3):
        new = torch.randn(3, 2, 1, 4)
        grown.append(decoding.appended(grown[-1], new))
        assert torch.equal(grown[-1], torch.cat([grown[-2], new], 2))
    assert grown[1].data_ptr() == grown[3].data_ptr() != grown[0].data_ptr()


def test_keys_and_values_go_when_their_completions_are_drawn(mini, prompts, monkeypatch):
    """At once, not when Python collects cycles: they are most of the memory that sampling takes."""
    made, appended = [], decoding.appended

    def watched(past, new):
        whole = appended(past, new)
        made.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr(decoding, "appended", watched)
    gc.disable()
    try:
        mini.sample(prompts, 2, FORTY)
        assert len(made) > 6 and not any(whole() is not None for whole in made)
    finally:
        gc.enable()


def test_a_large_model_draws_fewer_completions_at_once(mini, prompts, monkeypatch):
    encoded, calls = mini.encode(prompts), []
    assert mini.prompts_at_once(encoded, 2, FORTY) == 256
    assert mini.prompts_at_once(encoded, 1_000, FORTY) == 1
    decode = policy.decode
    monkeypatch.setattr(policy, "decode", lambda *given: calls.append(given[2]) or decode(*given))
    whole = texts(mini.sample(prompts, 2, FORTY))
    monkeypatch.setattr(decoding, "CPU_ROOM", 5e6)
    assert texts(mini.sample(prompts, 2, FORTY)) == whole
    assert len(calls[0]) == 12 and 2 < len(calls) <= 13


def test_greedy_agrees_with_transformers_generate(mini, prompts):
    ours = [group[0].output_text for group in mini.sample(prompts, 1, GREEDY)]
    texts, form = [mini.render(p) for p in prompts], dict(padding=True, add_special_tokens=False)
    batch = mini.tokenizer(texts, return_tensors="pt", **form)
    out = mini.model.generate(**batch, max_new_tokens=40, do_sample=False)
    new = out[:, batch.input_ids.shape[1] :]
    theirs = mini.tokenizer.batch_decode(new, skip_special_tokens=True)
    assert ours == [Sample.from_text(text).output_text for text in theirs]


def test_sampling_follows_the_models_distribution(mini, prompts):
    """The share of the likeliest first token, within four standard errors of the softmax."""
    import torch

    n, config = 2_000, SamplingConfig(max_new_tokens=3, seed=5)
    drawn = mini.sample(prompts[:1], n, config)[0]
    ids = torch.tensor(mini.encode(prompts[:1], "<think>"))
    expected, token = torch.softmax(mini.model(input_ids=ids).logits[0, -1].detach(), -1).max(0)
    share = sum(s.reasoning.startswith(mini.tokenizer.decode(token)) for s in drawn) / n
    assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 0.01


def test_a_tiny_top_p_keeps_the_likeliest_token_alone(mini, prompts):
    narrow = texts(mini.sample(prompts, 2, SamplingConfig(top_p=1e-6, max_new_tokens=40)))
    assert narrow == [group * 2 for group in texts(mini.sample(prompts, 1, GREEDY))]


@pytest.mark.parametrize(
    ("changes", "shows"),
    [
        ({"prefill": "<think>Common first."}, lambda s: s.reasoning.startswith("Common first.")),
        ({"stop": ["</think>"]}, lambda s: (s.output_text, s.finish_reason) == ("", "stop")),
        ({"max_new_tokens": 4}, lambda s: (s.finish_reason, s.completion_tokens) == ("length", 4)),
    ],
)
def test_prefill_stop_text_and_limit_show_in_the_samples(mini, prompts, changes, shows):
    config = SamplingConfig(**({"temperature": 0, "max_new_tokens": 40} | changes))
    assert all(shows(group[0]) for group in mini.sample(prompts, 1, config))


def test_merging_for_sampling_leaves_the_weights_as_they_were(adapter):
    import torch

    model = load_policy(str(adapter.parent)).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with merged_adapter(model):
        assert not all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def behind_endpoint(monkeypatch, model, answer):
    """An EndpointPolicy whose endpoint answers a request with answer(asked) -> (status, record)."""

    def handle(request):
        status, record = answer(json.loads(request.content))
        return httpx.Response(status, json=record)

    client = httpx.Client(transport=httpx.MockTransport(handle))
    monkeypatch.setattr("openai.OpenAI", partial(openai.OpenAI, http_client=client))
    return EndpointPolicy(model, f"endpoint:{model}", "http://policy/v1")


def test_an_endpoint_gives_the_same_samples_and_a_failed_call_loses_no_other(monkeypatch):
    def answer(asked):
        message = {"role": "assistant", "content": f"<think>hm</think>{asked['seed']}"}
        choice = {"index": 0, "finish_reason": "length", "message": message}
        status = 400 if "fail" in asked["messages"][-1]["content"] else 200
        return status, {"model": asked["model"], "choices": [choice]}

    asks = [[{"role": "user", "content": t}] for t in ("one", "fail", "three")]
    policy = behind_endpoint(monkeypatch, "m", answer)
    first, failed, third = policy.sample(asks, 2, SamplingConfig(seed=10))
    seeds = [s.output_text for s in first + third]
    assert len({*seeds}) == 4  # no two answers share their random numbers
    [again] = policy.sample([Prompt({"messages": asks[2]}, 2)], 2, SamplingConfig(seed=10))
    assert [s.output_text for s in again] == seeds[2:]
    assert (first[0].reasoning, first[0].finish_reason) == ("hm", "length")
    assert [s.finish_reason for s in failed] == ["error", "error"]
    assert "BadRequestError" in failed[0].errors[0]


def test_reasoning_that_a_server_parts_from_the_answer_is_the_samples(monkeypatch):
    message = {"role": "assistant", "content": "yes", "reasoning_content": "because"}
    reply = {"model": "m", "choices": [{"index": 0, "message": message}]}
    policy = behind_endpoint(monkeypatch, "m", lambda asked: (200, reply))
    [[sample]] = policy.sample([[{"role": "user", "content": "?"}]])
    assert (sample.reasoning, sample.output_text) == ("because", "yes")


LIMITS = ["max_tokens", "max_completion_tokens"]


@pytest.mark.parametrize(
    ("model", "refused", "sent"),
    [
        ("m", [], ["max_tokens"]),
        ("m", ["max_tokens"], LIMITS),
        ("m", ["max_tokens", "temperature"], [*LIMITS, "max_completion_tokens"]),
        ("openai/o4-mini", [], ["max_completion_tokens"]),
        ("gpt-5-nano", ["max_completion_tokens"], LIMITS[::-1]),
    ],
)
def test_a_parameter_that_an_endpoint_refuses_is_asked_in_another_way(
    monkeypatch, model, refused, sent
):
    calls = []

    def answer(asked):
        calls.append(asked)
        for name in refused:
            if name in asked:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}'"}}
        message = {"role": "assistant", "content": "yes"}
        return 200, {"model": "m", "choices": [{"index": 0, "message": message}]}

    policy = behind_endpoint(monkeypatch, model, answer)
    [[sample]] = policy.sample([[{"role": "user", "content": "?"}]], 1, FORTY)
    assert sample.output_text == "yes" and calls[-1][sent[-1]] == 40
    assert [name for call in calls for name in LIMITS if name in call] == sent
    policy.sample([[{"role": "user", "content": "?"}]], 1, FORTY)
    assert len(calls) == len(sent) + 1  # it is learned


def test_another_complaint_of_an_endpoint_changes_no_parameter(monkeypatch):
    error = {"message": "max_tokens is too large: 40", "param": "max_tokens"}
    policy = behind_endpoint(monkeypatch, "m", lambda asked: (400, {"error": error}))
    [[sample]] = policy.sample([[{"role": "user", "content": "?"}]], 1, FORTY)
    assert sample.finish_reason == "error" and policy.refused == set()


TURNS = (
    "{% for m in messages %}{% if m.role in known %}<|{{ m.role }}|>{{ m.content }}"
    "{% else %}OTHER{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS = TURNS.replace("known", "['user', 'system']").replace("OTHER", "")
RAISES = TURNS.replace("known", "['user']").replace("OTHER", "{{ raise_exception('no!') }}")
ASKED = [{"role": "developer", "content": "Ataxia."}, {"role": "user", "content": "Is it Ataxia.?"}]


@pytest.mark.parametrize(
    ("template", "given"),
    [
        (DROPS, "<|system|>Ataxia.<|user|>"),
        (DROPS.replace("system", "developer"), "<|developer|>Ataxia.<|user|>"),
        (DROPS.replace("'system'", "'tool'"), UserError("does not hold 'Ataxia.' .developer")),
        (RAISES, UserError("developer, user: no!")),
    ],
)
def test_a_developer_is_read_as_such_or_as_system_and_never_lost(
    mini, monkeypatch, template, given
):
    monkeypatch.setattr(mini.tokenizer, "chat_template", template)
    if isinstance(given, str):
        assert mini.render(ASKED).startswith(given)
        return
    with pytest.raises(UserError, match=str(given)):
        mini.sample([ASKED], 1, GREEDY)


def test_settings_of_the_chat_template_reach_it(mini, monkeypatch):
    monkeypatch.setattr(mini, "chat_template_kwargs", {"known": ["user", "system"]})
    monkeypatch.setattr(mini.tokenizer, "chat_template", TURNS.replace("OTHER", ""))
    assert mini.render(ASKED).startswith("<|system|>Ataxia.")


def test_an_unknown_model_or_engine_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "embedded:mini"}')  # an unfinished run's
    for name in ("embedded:giant", "nobody/nothing-of-this-name"):
        with pytest.raises(UserError, match=name):
            load_policy(name)
    with pytest.raises(UserError, match="not a model"):
        model_folder(str(tmp_path))
    with pytest.raises(UserError, match="vllm"):
        choose_engine("vllm", "cpu")


def test_unsloth_after_trl_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match="engine: unsloth after trl"):
        choose_engine("unsloth", "cpu")


def test_unsloth_is_told_the_length_that_the_model_was_made_for(monkeypatch):
    """On a GPU it cuts longer sequences off."""
    given = {}
    load = lambda name, **form: (given.update(form), None)  # noqa: E731
    fake = SimpleNamespace(FastLanguageModel=SimpleNamespace(from_pretrained=load))
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    load_model(str(embedded_model("mini")), "unsloth")
    assert given["max_seq_length"] == 256


@pytest.mark.parametrize("size", [0, 100, -1])
def test_weights_missing_or_cut_short_are_refused(adapter, tmp_path, size):
    check_weights(adapter)
    model = shutil.copytree(embedded_model("mini"), tmp_path / "model")
    for file in (adapter / "adapter_model.safetensors", model / "model.safetensors"):
        file.write_bytes(file.read_bytes()[:size])
        for load in (load_policy, check_weights):
            with pytest.raises(UserError, match=f"{file}: no whole safetensors file"):
                load(str(file.parent))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter: no adapter_model.safetensors"):
        load_policy(str(adapter.parent))


@pytest.mark.parametrize(
    "broken",
    [b'{"peft_type": "LO', b"[]", b"{}", {"r": 4}, {"peft_type": "NO_SUCH"}, {"r": "two"}],
)
def test_an_adapter_config_that_is_broken_or_does_not_fit_is_refused(adapter, broken):
    file = adapter / "adapter_config.json"
    if isinstance(broken, dict):
        broken = json.dumps(json.loads(file.read_text()) | broken).encode()
    file.write_bytes(broken)
    with pytest.raises(UserError, match=f"^{adapter}"):
        load_policy(str(adapter))


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"base": "/elsewhere/site-packages/rftkit/models/mini"}, str(embedded_model("mini"))),
        ({"base": "/cache/of/another/machine/smollm2"}, "RUN/smollm2"),
        ({"base": "own"}, "RUN/own"),  # beside the adapter's run, wherever that stands now
        ({"base": "org/name", "revision": "abc"}, "org/name@abc"),
        ({"base": "/nowhere/model"}, None),
    ],
)
def test_an_adapter_finds_its_base(adapter, monkeypatch, tmp_path, record, found):
    (adapter.parent / "own").mkdir()
    (adapter.parent / "smollm2").mkdir()
    monkeypatch.setenv("RFTKIT_CACHE", str(adapter.parent))
    monkeypatch.chdir(tmp_path)
    file = adapter / "adapter_config.json"
    base = {"base_model_name_or_path": record.pop("base")}
    file.write_text(json.dumps(json.loads(file.read_text()) | base | record))
    if found is None:
        with pytest.raises(UserError, match="its base /nowhere/model is not there"):
            model_folder(str(adapter))
    else:
        assert model_folder(str(adapter))[0] == found.replace("RUN", str(adapter.parent))


def test_the_tokenizer_beside_an_adapter_is_read_first(adapter, mini, monkeypatch):
    base = str(embedded_model("mini"))
    assert load_tokenizer(base, str(adapter)).chat_template == mini.tokenizer.chat_template
    monkeypatch.setattr(mini.tokenizer, "chat_template", DROPS)
    mini.tokenizer.save_pretrained(adapter)
    assert load_tokenizer(base, str(adapter)).chat_template == DROPS
    assert load_policy(str(adapter)).tokenizer.chat_template == DROPS
