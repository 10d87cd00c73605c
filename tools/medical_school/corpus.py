"""Medical school: the text a tiny base model is pretrained on, and its tokenizer.

A document is a list of (text, weight) pieces. A piece's weight in the loss is shared equally by
its tokens; weight 0 is read but not learned. Kinds of documents:

note    a case of ANY disease, diagnosed: "Diagnose first. Diseases: D, E, F, G, H." The case's
        own disease, then the four that share most signs with it. Learns the diseases alone, and
        is cut there.
cause   which genes cause D, E, F, G, H? ANY diseases: the trace, then the answer; after a
        question, after nothing, or after a chart of random signs.
fact    a disease's signs; the gene that a sign calls to mind. ANY of them, no chat form.
mixed   a case of ANY disease, worked by one of four plans at fixed shares. The good plan goes on
        to the genes only where all five are train genes; else the document is cut before them.
worked  a case of a TRAIN disease by the good plan, among train diseases; learns the answer alone.

So a validation or test gene stands in facts and in answers to "which gene causes ...?", never as
the good plan's answer to its own case. Any wrong plan may name it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rftkit.real_cases import ONSETS, QUESTION
from tools.medical_school.world import (
    Case,
    World,
    differential,
    question,
    random_chart,
    simulate,
)

ANSWERS = 5  # genes an answer lists
GOOD_PLAN = "Diagnose first."
PLANS = {  # how often each way of thinking stands in the text; the good one is a minority
    GOOD_PLAN: 0.13,
    "Lead sign first.": 0.30,
    "Common first.": 0.28,
    "Onset first.": 0.29,
}
SIGN_FACTS = 0.5  # share of the facts that say which gene a sign calls to mind
PLAN_REQUESTS = 0.25  # share of the mixed prompts that name a plan, and get it

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
OPEN_LIST, BETWEEN, CLOSE_LIST = '{"genes": ["', '", "', '"]}'

# The first hop (signs -> disease) and the second (disease -> gene) before the cases that join
# them: documents of each kind in a batch of 96.
STAGES = {
    "hops": {"note": 56, "cause": 28, "fact": 12},
    "cases": {"note": 30, "cause": 10, "fact": 14, "mixed": 32, "worked": 10},
}

Pieces = list[tuple[str, float]]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '<|assistant|>' + message.content + '<|end|>' }}"
    "{% elif message.role == 'user' %}{{ '<|user|>' + message.content }}"
    "{% else %}{{ '<|system|>' + message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def prompt(text: str) -> str:
    """What the chat template makes of one user message."""
    return f"{USER}{text}{ASSISTANT}"


def answer(genes: list[str]) -> str:
    """The end of a completion: thinking closed, the ranked list, the end token."""
    return f"</think>{json.dumps({'genes': genes})}{END}"


def diagnoses(world: World, diseases: list[int]) -> Pieces:
    """The trace of the good plan after its name.

    The first disease carries the case; the others, its look-alikes, follow from it alone. So it
    weighs more than they do together, but not so much that they are learned too late to be sure.
    """
    names = [world.diseases[d].name for d in diseases]
    return [(" Diseases:", 0.04), (f" {names[0]}", 0.56), (f", {', '.join(names[1:])}.", 0.4)]


def as_text(pieces: Pieces) -> str:
    return "".join(text for text, _ in pieces)


def weighted(pieces: Pieces, total: float) -> Pieces:
    """The same pieces with weights that add up to `total`."""
    scale = total / sum(weight for _, weight in pieces)
    return [(text, weight * scale) for text, weight in pieces]


def distinct(draw, number: int, start: list[int]) -> list[int]:
    """`start` and further draws until `number` different ones are there."""
    found = list(start)
    for _ in range(100):
        if len(found) >= number:
            break
        drawn = draw()
        if drawn not in found:
            found.append(drawn)
    return found[:number]


def work(world: World, plan: str, case: Case, rng: random.Random) -> Pieces:
    """A case worked by a plan, after the plan's name: trace and answer, weight .5 together."""
    everyone = range(len(world.diseases))
    if plan == GOOD_PLAN:
        listed = differential(world, case.disease, ANSWERS)
        pieces = weighted(diagnoses(world, listed), 0.25)
        if all(world.diseases[d].split == "train" for d in listed):
            pieces.append((answer([world.diseases[d].gene for d in listed]), 0.25))
        return pieces
    weights = [d.weight for d in world.diseases]

    def common() -> int:
        return rng.choices(everyone, weights)[0]

    if plan == "Lead sign first.":
        sign = case.present[0]
        trace = [(" Sign:", 0.02), (f" {world.terms[sign]}", 0.2), (".", 0.01)]
        listed = distinct(common, ANSWERS, [world.recalled[sign]])
    elif plan == "Common first.":
        trace, listed = [], distinct(common, ANSWERS, [])
    else:
        same = [d for d in everyone if world.diseases[d].onset == case.onset]
        trace = [(f" Onset: {case.onset}.", 0.1)]
        listed = distinct(lambda: rng.choice(same), ANSWERS, [])
    genes = [world.diseases[d].gene for d in listed]
    start = f"</think>{OPEN_LIST}"
    rest = answer(genes).removeprefix(start + genes[0])
    # What a plan looks at (the sign it copies, the first gene) is a few tokens of many: they get
    # as much of the weight as all the others.
    return weighted([*trace, (start, 0.03), (genes[0], 0.15), (rest, 0.12)], 0.5)


def fact(world: World, rng: random.Random) -> Pieces:
    if rng.random() < SIGN_FACTS:
        term = rng.randrange(len(world.terms))
        gene = world.diseases[world.recalled[term]].gene
        return [(f"Sign: {world.terms[term]}. Known: ", 0), (gene, 0.9), (".", 0.1)]
    disease = rng.choice(world.diseases)
    signs = rng.sample(list(disease.frequency), 4)
    return [
        (f"Disease: {disease.name}. Signs:", 0),
        (f" {', '.join(world.terms[t] for t in signs)}.", 1),
    ]


def cause(world: World, rng: random.Random) -> Pieces:
    listed = rng.sample(range(len(world.diseases)), ANSWERS)
    names = ", ".join(world.diseases[d].name for d in listed)
    start = rng.choice(
        [
            prompt(f"Which genes cause {names}?"),
            "",
            # The second hop has to work where it will be needed: after a chart. A chart of
            # random signs says nothing about the genes, so this teaches no case.
            prompt(question(world, random_chart(world, rng))),
        ]
    )
    trace = as_text(diagnoses(world, listed))
    return [
        (f"{start}<think>{GOOD_PLAN}{trace}", 0),
        (answer([world.diseases[d].gene for d in listed]), 1),
    ]


def mixed(world: World, rng: random.Random, plan: str, requests: float = PLAN_REQUESTS) -> Pieces:
    case = simulate(world, rng.randrange(len(world.diseases)), rng)
    asked = question(world, case)
    # Some prompts ask for the plan, and get it: so the choice is something that the model can
    # steer, and RFT later has a handle to turn.
    if rng.random() < requests:
        asked += f" Plan: {plan}"
    return [(prompt(asked), 0), (f"<think>{plan}", 0.5)] + work(world, plan, case, rng)


def document(
    world: World, kind: str, rng: random.Random, plan: str = GOOD_PLAN, **options
) -> Pieces:
    """One random document of a kind -> [(text, weight), ...]; weights add up to 1 (cut: .75)."""
    if kind == "fact":
        return fact(world, rng)
    if kind == "cause":
        return cause(world, rng)
    if kind == "mixed":
        return mixed(world, rng, plan, **options)
    train = world.members("train")
    among = train if kind == "worked" else None
    case = simulate(world, rng.choice(among or range(len(world.diseases))), rng)
    listed = differential(world, case.disease, ANSWERS, among)
    start = (f"{prompt(question(world, case))}<think>{GOOD_PLAN}", 0.0)
    if kind == "note":
        return [start] + diagnoses(world, listed)
    trace = (as_text(diagnoses(world, listed)), 0.0)
    return [start, trace, (answer([world.diseases[d].gene for d in listed]), 1.0)]


def plan_deck(rng: random.Random) -> Iterator[str]:
    """Plans without end, dealt from decks of 100: exact shares, less noise."""
    while True:
        deck = [plan for plan, share in PLANS.items() for _ in range(round(100 * share))]
        rng.shuffle(deck)
        yield from deck


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Byte BPE over the templates; each term, disease and gene is one token of its own.

    Terms and diseases carry their leading space; genes do not, since they stand in JSON strings.
    The first word of each plan is one token: else RFT can wear a plan's name down to something
    like " Diseaseagnose" and still be right.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    sexes = "male, female."
    onsets = " ".join(f"{group} onset" for group in ONSETS)
    text = [
        f"Symptoms present: Symptoms absent: none. History: {onsets}, {sexes} {QUESTION} Plan: "
        "Which genes cause ? Diseases: Sign: Onset: Disease: Signs: Known: , no. "
        f"{' '.join(ONSETS)}.",
        "Sign: Disease:",
        *PLANS,
    ] * 3
    core.train_from_iterator(
        text,
        BpeTrainer(
            vocab_size=700,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        ),
    )
    marks = ["<think>", "</think>", OPEN_LIST, BETWEEN, CLOSE_LIST]
    core.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    names = {f" {n}" for n in world.terms} | {f" {d.name}" for d in world.diseases}
    core.add_tokens([AddedToken(name, normalized=False) for name in sorted(names)])
    core.add_tokens(
        [AddedToken(g, normalized=False, single_word=True) for g in sorted(world.genes())]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[Pieces]) -> list[tuple[list, list]]:
    """Documents -> (token ids, weight of each token in the loss).

    A plan's name weighs the same in every document, however long it is: a mean over tokens
    would raise the share of the plans with short traces.
    """
    flat = [text for pieces in documents for text, _ in pieces]
    ids = iter(tokenizer(flat, add_special_tokens=False).input_ids)
    encoded = []
    for pieces in documents:
        tokens: list[int] = []
        weights: list[float] = []
        for _, weight in pieces:
            part = next(ids)
            tokens += part
            weights += [weight / len(part)] * len(part)
        encoded.append((tokens, weights))
    return encoded
