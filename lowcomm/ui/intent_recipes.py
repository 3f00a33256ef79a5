"""Which recipe a sentence starts from: by the method, the model or the kind of run that it names."""

from __future__ import annotations

from collections.abc import Sequence

from lowcomm.ui.sentence import Sentence

USUAL = "diloco.py:pretrain_cpu"
QUICK = r"\b(?:quick(?:ly)?|smoke(?: test)?|to try(?: it)?(?: out)?|in seconds)\b"
GPU = r"\b(?:gpus?|cuda)\b"

METHODS: tuple[tuple[str, str], ...] = (
    (r"\bchats?\b", "fed_lora.py:chat"),
    (
        r"\bsmol\s?lm(?:[ -]?2)?(?:-135m)?(?:-instruct)?\b(?:\W+(?:with |and )?(?:lora|adapters?))?",
        "fed_lora.py:smollm2",
    ),
    (r"\b(?:dp|differential(?:ly)?[ -]priva\w+|private)\b(?:\W+lora)?", "fed_lora.py:dp"),
    (r"\bsecure(?:[ -](?:aggregation|sums?))?\b", "fed_clients.py:secure"),
    (r"\bdora\b", "fed_peft.py:dora"),
    (r"\bia3\b", "fed_peft.py:ia3"),
    (r"\bbitfit\b", "fed_peft.py:bitfit"),
    (r"\bprompt[ -]tuning\b", "fed_peft.py:prompt"),
    (r"\bffa(?:-lora)?\b", "fed_lora.py:ffa"),
    (r"\brolora\b", "fed_lora.py:rolora"),
    (r"\bflora\b", "fed_lora.py:flora"),
    (r"\bfedex(?:-lora)?\b", "fed_lora.py:fedex"),
    (r"\bflexlora\b", "fed_lora.py:flexlora"),
    (r"\bhetlora\b", "fed_lora.py:hetlora"),
    (r"\bfedsa(?:-lora)?\b", "fed_lora.py:fedsa"),
    (r"\bfedprox\b", "fed_clients.py:fedprox"),
    (r"\bscaffold\b", "fed_clients.py:scaffold"),
    (r"\bfedavg-?m\b", "fed_clients.py:fedavgm"),
    (r"\b(?:zeroth[ -]order|just one byte|one byte)\b", "zeroth_order.py:one_byte"),
    (r"\b(?:federated )?(?:lora|adapters)\b|\bfedit\b", "fed_lora.py:fedit"),
    (r"\bnoloco\b", "gossip.py:noloco"),
    (r"\bgossip\b", "gossip.py:dsgd"),
    (r"\b(?:fedbuff|buffered|asynchronous(?:ly)?)\b", "asynchronous.py:fedbuff"),
    (r"\b(?:krum|robust|byzantine|hostile)\b", "robust.py:trimmed"),
    (r"\bdilocox\b", "dilocox.py:pretrain_cpu"),
    (r"\bstreaming(?: diloco)?\b", "streaming.py:fp32"),
    (r"\b(?:muloco|muon)\b", "muloco.py:pretrain_cpu"),
    (r"\b(?:shampoo|soap)\b", "shampoo.py:pretrain_cpu"),
    (r"\blion\b", "lion.py:pretrain_cpu"),
    (r"\beager\b", "eager.py:pretrain_cpu"),
    (r"\badaptive\b", "adaptive.py:bits"),
    (r"\b(?:ddp|data[ -]parallel)\b", "ddp.py:pretrain_cpu"),
    (r"\bdiloco\b", "diloco.py:pretrain_cpu"),
)
"""The first that fits is the recipe; the others are left for the rules of fields, or count as not understood."""


def recipe_of(sentence: Sentence, names: Sequence[str], current: str | None) -> tuple[str, str]:
    """(recipe, the words that name it); without any the recipe that is open, or the usual one."""
    chosen, words = current or USUAL, ""
    for pattern, reference in METHODS:
        match = next(sentence.take(pattern), None)
        if match is not None and reference in names:
            chosen, words = reference, sentence.drop(match)
            break
    file = chosen.partition(":")[0]
    for pattern, function, drops in ((QUICK, "smoke", True), (GPU, "pretrain", False)):
        match = next(sentence.take(pattern), None)
        if match is not None and f"{file}:{function}" in names:
            chosen = f"{file}:{function}"
            words = f"{words} {sentence.drop(match) if drops else match[0]}".strip()
            break
    return (chosen if chosen in names else names[0]), words
