"""Ask an original and its compressed form the same, and mark where they disagree."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.precision import dtype_label
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import templated
from ders_core.evaluate.forward import loaded
from ders_core.evaluate.metrics import divergences
from ders_core.evaluate.pieces import Pieces, decoded
from ders_core.evaluate.speaking import Draw, Spoken, speak
from ders_core.evaluate.vocabulary import shared_vocabulary
from ders_core.evaluate.windows import check_vocabulary
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.texts import Document
from ders_core.hf import describe, load_tokenizer, shared_dtype
from ders_core.hf.describe import ModelFacts
from ders_core.pipeline.replies import MOST_TEMPERATURE, MOST_TOKENS, Replies, Reply, ReplyToken

ORIGINAL, COMPRESSED = "the original", "the compressed model"


def compare_replies(
    model: str | Path,
    reference: str | Path,
    prompt: str,
    *,
    device: str = "cpu",
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> Replies:
    """`compare_all_replies` of one model to one prompt."""
    ((replies,),) = compare_all_replies(
        [model],
        reference,
        [prompt],
        device=device,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    return replies


@unchanged_inputs()
def compare_all_replies(
    models: Sequence[str | Path],
    reference: str | Path,
    prompts: Sequence[str],
    *,
    device: str = "cpu",
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> list[list[Replies]]:
    """Let `reference` and each of `models` reply to the same prompts, and say of each token of two
    replies what the other model would say after the same tokens.

    Returns `[models][prompts]`. All are directories, packed or not; one is in memory at a time, so
    the original is loaded a second time if any reply differs. max_tokens: of a reply, at most
    `MOST_TOKENS`; the log-probabilities of all replies are in memory, in float32. temperature: 0
    for the most likely token; else by chance, the same for all (see
    `ders_core.evaluate.speaking.Draw`). chat: write a prompt as a user's message by the reference's
    chat template. Other parameters are those of `ders_core.evaluate.evaluate`. progress counts
    tokens.
    Raises CheckpointError if one of the models cannot be loaded or has no tokenizer, or a file that
    was read is written meanwhile; EvaluationError for a prompt that is empty or too long, if they
    do not share a tokenizer and a vocabulary, or a model does not continue texts.
    """
    started = time.monotonic()
    where, draw = resolve_device(device), _draw(temperature, seed)
    if not 1 <= max_tokens <= MOST_TOKENS:
        raise EvaluationError(f"max_tokens is {max_tokens}; give 1 to {MOST_TOKENS}")
    if not models or not prompts:
        raise EvaluationError("nothing is asked; give a model and a prompt")
    facts = [describe(path, trust_remote_code=trust_remote_code) for path in (reference, *models)]
    shared_vocabulary(facts)
    tokenizers = [load_tokenizer(each.path, trust_remote_code=trust_remote_code) for each in facts]
    asked = [_prompt_tokens(facts, tokenizers, prompt, chat) for prompt in prompts]
    _check_length(facts, max(map(len, asked)), max_tokens)
    chosen = shared_dtype(facts, where) if dtype is None else dtype
    meter = Meter((1 + 3 * len(models)) * len(asked) * max_tokens, progress)
    asking = _Asking(tokenizers[0], where, chosen, trust_remote_code, max_tokens, draw, meter)
    with asking.model(reference, ORIGINAL) as network:
        firsts = [asking.free(network, ORIGINAL, tokens) for tokens in asked]
    said: list[list[_Said]] = []
    for number, path in enumerate(models, start=1):
        role = COMPRESSED if len(models) == 1 else f"{COMPRESSED} {number} of {len(models)}"
        with asking.model(path, role) as network:
            pairs = zip(asked, firsts, strict=True)
            said.append([asking.both(network, role, tokens, first) for tokens, first in pairs])
            computed_in: torch.dtype = network.dtype
    if not all(each.compressed for row in said for each in row):
        with asking.model(reference, ORIGINAL) as network:
            for row in said:
                for place, tokens in enumerate(asked):
                    row[place] = asking.judged(network, tokens, row[place])
    meter.finish("replied")
    seconds = time.monotonic() - started

    def replies(tokens: Sequence[int], each: _Said) -> Replies:
        assert each.compressed is not None, "the original judged it"
        return Replies(
            prompt=decoded(tokenizers[0], tokens),
            prompt_tokens=len(tokens),
            original=each.original,
            compressed=each.compressed,
            same=each.same,
            temperature=temperature,
            seed=seed if temperature else None,
            dtype=dtype_label(computed_in),
            device=device_label(where),
            seconds=seconds,
        )

    return [
        [replies(tokens, each) for tokens, each in zip(asked, row, strict=True)] for row in said
    ]


@dataclass(frozen=True)
class _Said:
    """What the original said, with what a compressed model would say in its place, and how many of
    its first tokens that says too. compressed: the other way round; None until the original has
    judged `second`, whose log-probabilities are kept no longer than that."""

    original: Reply
    same: int
    compressed: Reply | None
    second: Spoken | None = None


@dataclass(frozen=True)
class _Asking:
    """How all models are asked and run. tokenizer: of the original."""

    tokenizer: PreTrainedTokenizerBase
    where: torch.device
    dtype: torch.dtype | None
    trust: bool
    most: int
    draw: Draw
    meter: Meter

    def model(self, path: str | Path, role: str) -> AbstractContextManager[PreTrainedModel]:
        self.meter.report(f"loading {role}")
        return loaded(path, self.where.type, self.dtype, self.trust)

    def free(self, network: PreTrainedModel, role: str, prompt: Sequence[int]) -> Spoken:
        """What the model says."""
        return speak(network, prompt, self.most, self.draw, self._counted(f"{role} replies"))

    def along(
        self, network: PreTrainedModel, role: str, prompt: Sequence[int], other: Spoken
    ) -> Spoken:
        """What the model would say along another's reply."""
        said = self._counted(f"{role} reads the other reply")
        return speak(network, prompt, self.most, self.draw, said, other)

    def both(
        self, network: PreTrainedModel, role: str, prompt: Sequence[int], first: Spoken
    ) -> _Said:
        """What a compressed model says along the original's reply, and by itself. What the original
        says along that is not known yet, unless both are the same."""
        along = self.along(network, role, prompt, first)
        kl = divergences(first.log_probs, along.log_probs)
        original = _reply(self.tokenizer, first, along, kl)
        if along.choices == first.tokens:
            compressed = _reply(self.tokenizer, along, first, kl)
            return _Said(original, len(first.tokens), compressed)
        second = self.free(network, role, prompt)
        pairs = zip(first.tokens, second.tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return _Said(original, same, None, second)

    def judged(self, network: PreTrainedModel, prompt: Sequence[int], said: _Said) -> _Said:
        """With what the original, which `network` is, says along the compressed model's reply."""
        if said.second is None:
            return said
        along = self.along(network, ORIGINAL, prompt, said.second)
        kl = divergences(along.log_probs, said.second.log_probs)
        compressed = _reply(self.tokenizer, said.second, along, kl)
        return replace(said, compressed=compressed, second=None)

    def _counted(self, message: str) -> Callable[[], None]:
        return lambda: self.meter.advance(1, message)


def _draw(temperature: float, seed: int) -> Draw:
    if not 0 <= temperature <= MOST_TEMPERATURE:
        raise EvaluationError(f"temperature is {temperature}; give 0 to {MOST_TEMPERATURE:g}")
    if seed < 0:
        raise EvaluationError(f"seed is {seed}; give 0 or more")
    return Draw(temperature, seed)


def _prompt_tokens(
    facts: Sequence[ModelFacts],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    prompt: str,
    chat: bool,
) -> list[int]:
    """The prompt as all models read it."""
    text = prompt
    if chat:
        if not tokenizers[0].chat_template:
            raise EvaluationError(
                f"the tokenizer of {facts[0].path} has no chat template; ask without it"
            )
        message = Document(Path("the prompt"), messages=({"role": "user", "content": prompt},))
        text = str(templated(message, tokenizers[0], tokenize=False, add_generation_prompt=True))
    rows: list[list[int]] = [
        list(tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"])
        for tokenizer in tokenizers
    ]
    others = zip(facts[1:], rows[1:], strict=True)
    apart = next((each for each, row in others if row != rows[0]), None)
    if apart is not None:
        raise EvaluationError(
            f"{apart.path} splits the prompt into other tokens than {facts[0].path}; only "
            "models with one tokenizer can be compared"
        )
    if not rows[0] or not prompt.strip():
        raise EvaluationError("the prompt is empty; write a few words")
    for each, tokenizer in zip(facts, tokenizers, strict=True):
        check_vocabulary(torch.tensor(rows[0]), each.vocabulary, tokenizer, each.path)
    return rows[0]


def _check_length(facts: Sequence[ModelFacts], prompt: int, most: int) -> None:
    """Raise EvaluationError if prompt and reply do not fit into a model's context."""
    for each in facts:
        needed = max(prompt, most) if each.encoder_decoder else prompt + most
        if each.positions is not None and needed > each.positions:
            raise EvaluationError(
                f"the prompt has {prompt} tokens and the reply may have {most}, but {each.path} "
                f"reads at most {each.positions}; shorten the prompt or ask for fewer tokens"
            )


def _reply(
    tokenizer: PreTrainedTokenizerBase, spoken: Spoken, other: Spoken, kl: torch.Tensor
) -> Reply:
    """kl: `[tokens]`, nats."""
    pieces = Pieces.of(tokenizer, spoken.tokens)
    chances, others = _chances(spoken, spoken.tokens), _chances(other, spoken.tokens)
    tokens = []
    for place, (said, choice) in enumerate(zip(spoken.tokens, other.choices, strict=True)):
        tokens.append(
            ReplyToken(
                text=pieces[place],
                other=None if choice == said else pieces.instead(place, choice),
                chance=chances[place],
                other_chance=others[place],
                kl=float(kl[place]),
            )
        )
    return Reply(tokens=tuple(tokens), ended=spoken.ended)


def _chances(spoken: Spoken, tokens: Sequence[int]) -> list[float]:
    """The probability of each token by what was said in its place."""
    picked = spoken.log_probs.gather(-1, torch.tensor(tokens)[:, None])
    return [float(chance) for chance in picked[:, 0].double().exp()]
