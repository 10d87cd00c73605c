"""Load a model and sample from it: one function each, whatever the engine.

    policy = load_policy("embedded:mini")
    groups = policy.sample([row["messages"] for row in rows], n=4, config=SamplingConfig())

`groups[p][i]` is answer i to prompt p, a `Sample`. Three engines share that meaning:
transformers (+ PEFT for adapters), Unsloth's FastLanguageModel, and an OpenAI-compatible endpoint.

protocol.py  Policy: what all of them promise          loading.py   from a name to a model
decoding.py  one batch, token by token                 local.py     a model in this process
endpoint.py  a model behind an address
"""

from rftkit.policy.decoding import choose, decode, end_tokens, stopped, uniform_numbers
from rftkit.policy.endpoint import EndpointPolicy
from rftkit.policy.loading import (
    check_weights,
    choose_engine,
    load_model,
    load_policy,
    load_unsloth,
    model_folder,
    prepare_tokenizer,
)
from rftkit.policy.local import SMALL, LocalPolicy, merged_adapter
from rftkit.policy.protocol import Messages, Policy, Progress

__all__ = [
    "SMALL",
    "EndpointPolicy",
    "LocalPolicy",
    "Messages",
    "Policy",
    "Progress",
    "check_weights",
    "choose",
    "choose_engine",
    "decode",
    "end_tokens",
    "load_model",
    "load_policy",
    "load_unsloth",
    "merged_adapter",
    "model_folder",
    "prepare_tokenizer",
    "stopped",
    "uniform_numbers",
]
