"""A transformers model as one GGUF file for llama.cpp and Ollama, and llama.cpp answering with it.

Llama and Qwen families with a byte-level BPE tokenizer. The `gguf` package knows the names of keys
and tensors. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rftkit.decoding import end_tokens
from rftkit.files import UserError
from rftkit.policy import EndpointPolicy, LocalPolicy, Policy

INSTALL = 'pip install "rftkit[export]"'
FAMILIES = ("llama", "qwen2", "qwen3")  # model_type, and llama.cpp's name of it
OTHER_WAY = 'export it as "merged", and convert that with llama.cpp\'s convert_hf_to_gguf.py'
# How text is cut before the merges: a tokenizer's steps, and llama.cpp's name of them. The regular
# expression is that of Llama 3 and Qwen, which differ in the digits that stay together.
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (CUT.replace("DIGITS", ""), "ByteLevel"): "qwen2",
    (CUT.replace("DIGITS", "{1,3}"), "ByteLevel"): "llama-bpe",
}


def write_gguf(model: Any, tokenizer: Any, file: Path) -> None:
    """Write weights (vectors in fp32), tokenizer and chat template; UserError for other kinds."""
    try:
        import gguf
    except ImportError:
        raise UserError(f"the gguf package is missing: {INSTALL}") from None
    config, rope = model.config, model.config.rope_parameters
    family = config.model_type
    plain = {*(getattr(config, "layer_types", None) or ["full_attention"])} == {"full_attention"}
    if family not in FAMILIES or not plain:
        known = ", ".join(FAMILIES)
        raise UserError(f'model_type "{family}", expected {known}, full attention: {OTHER_WAY}')
    if rope["rope_type"] not in ("default", *["llama3"] * (family == "llama")):
        raise UserError(f'rope_type "{rope["rope_type"]}", expected default: {OTHER_WAY}')
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(file, family)
    writer.add_name(file.parent.name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, gguf.TokenType, model, tokenizer)
    kinds = gguf.GGMLQuantizationType
    kind = kinds[{"float16": "F16", "bfloat16": "BF16"}.get(str(model.dtype)[6:], "F32")]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.detach().float().cpu().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if family == "llama" and (count := heads.get(name.split(".")[-2])):
            values = interleaved(values, count)
        of = kinds.F32 if values.ndim == 1 else kind
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(key, gguf.quants.quantize(values, of), raw_dtype=of)
    if rope["rope_type"] == "llama3":  # each rotation is slowed down by a factor of its own
        usual = rope["rope_theta"] ** (-np.arange(0, width, 2) / width)
        slowed = usual / model.model.rotary_emb.inv_freq.float().cpu().numpy()
        writer.add_tensor("rope_freqs.weight", slowed.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: it rotates neighbours (0, 1), (2, 3),
    transformers the halves of a head (0, n / 2), (1, n / 2 + 1)."""
    shape = (heads, 2, len(values) // heads // 2, *values.shape[1:])
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)


def add_tokenizer(writer: Any, kinds: Any, model: Any, tokenizer: Any) -> None:
    """Tokens, merges, special tokens and the chat template, from what tokenizer.json holds."""
    record = json.loads(tokenizer.backend_tokenizer.to_str())
    cutter, bpe = record["pre_tokenizer"] or {}, record["model"]
    steps = [
        step["pattern"].get("Regex") if step["type"] == "Split" else step["type"]
        for step in cutter.get("pretokenizers", [cutter] if cutter else [])
        if not step.get("add_prefix_space")
    ]
    if bpe["type"] != "BPE" or tuple(steps) not in CUTS:
        is_one = f"{bpe['type']} cut by {steps}"
        raise UserError(f"tokenizer: {is_one}, expected a known byte-level BPE: {OTHER_WAY}")
    count = model.get_input_embeddings().weight.shape[0]
    tokens, types = [f"[PAD{i}]" for i in range(count)], [kinds.UNUSED] * count
    for token, number in bpe["vocab"].items():
        tokens[number], types[number] = token, kinds.NORMAL
    for added in record["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(CUTS[tuple(steps)])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for end in end_tokens(model, tokenizer) - {tokenizer.eos_token_id}:
        writer.add_eot_token_id(end)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(False)  # the chat template writes it where a model has one
    writer.add_chat_template(tokenizer.chat_template)


def modelfile(policy: LocalPolicy, limit: int) -> str:
    """For Ollama, beside model.gguf: sampling as in training, `limit` tokens at most. Its template
    is what the chat template makes of two place-holders: a system message, if the model takes one,
    and a question. Tools are left out."""
    asked = {"role": "user", "content": "{{ .Prompt }}"}
    template = policy.apply_template([asked], add_generation_prompt=True)
    try:
        both = [{"role": "system", "content": "{{ .System }}"}, asked]
        led = policy.apply_template(both, add_generation_prompt=True)
        template = f"{{{{ if .System }}}}{led}{{{{ else }}}}{template}{{{{ end }}}}"
    except Exception:  # jinja's own: the template refuses a system message
        pass
    context = min(policy.model.config.max_position_embeddings, 32_768)
    numbers = {"temperature": 1, "top_p": 1, "top_k": 0, "repeat_penalty": 1}
    numbers |= {"num_predict": min(limit, context), "num_ctx": context}
    lines = ["FROM ./model.gguf", f'TEMPLATE """{template}{{{{ .Response }}}}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in numbers.items()]
    for end in sorted(end_tokens(policy.model, policy.tokenizer)):
        lines.append(f'PARAMETER stop "{policy.tokenizer.convert_ids_to_tokens(end)}"')
    return "\n".join(lines) + "\n"


@contextmanager
def llama_server(file: Path, kwargs: dict[str, Any] | None = None) -> Iterator[Policy]:
    """llama.cpp's own server in this process, with the template and tokenizer of the file:
    https://github.com/xorbitsai/xllamacpp"""
    try:
        import xllamacpp as llama
    except ImportError:
        raise UserError(f"the xllamacpp package is missing: {INSTALL}") from None
    params = llama.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx, params.warmup = 1, 0, False  # 0: what the model was made for
    params.cpuparams.n_threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    fp32 = llama.ggml_type.GGML_TYPE_F32
    # Exact, not quick: by default the cache has 16 bits, and attention adds up in another order.
    params.cache_type_k = params.cache_type_v = fp32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja, params.verbosity = True, -1
    params.reasoning_format = llama.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    params.default_template_kwargs = {k: json.dumps(v) for k, v in (kwargs or {}).items()}
    try:
        server = llama.Server(params)
    except RuntimeError as error:
        raise UserError(f"{file}: llama.cpp cannot load it ({error}): export it again") from None
    yield EndpointPolicy("gguf", "gguf", f"{server.listening_address}/v1", workers=1)
    del server
