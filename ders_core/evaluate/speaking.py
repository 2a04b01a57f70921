"""One model after a prompt: what it says, or what it would say along another model's reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from ders_core.errors import DersError, EvaluationError
from ders_core.hf.classes import words


@dataclass(frozen=True)
class Draw:
    """How a token is chosen from a prediction: the most likely one at temperature 0; else by
    chance, p^(1/temperature), with the same chance for every model at the same place.

    The chance is Gumbel noise of (seed, place) on the log-probabilities: the largest sum has the
    probability that is asked for (Gumbel-max). So two models say different tokens only as far as
    their predictions differ.
    """

    temperature: float = 0.0
    seed: int = 0

    def token(self, log_probs: torch.Tensor, place: int) -> int:
        """log_probs: `[vocabulary]` float32, on the CPU. place: number of the token, from 0."""
        if not self.temperature:
            return int(log_probs.argmax())
        noise = np.random.default_rng((self.seed, place)).gumbel(size=len(log_probs))
        return int((log_probs.double() / self.temperature + torch.from_numpy(noise)).argmax())


@dataclass(frozen=True)
class Spoken:
    """tokens: of the reply. choices: what this model says in place of each; the same tokens unless
    it went along another's reply. log_probs: `[tokens, vocabulary]` float32, of each place. ended:
    whether the last token ends a reply."""

    tokens: tuple[int, ...]
    choices: tuple[int, ...]
    log_probs: torch.Tensor
    ended: bool


class _Chooser(LogitsProcessor):
    """Leaves one token possible: the model's own choice, or that of the reply it goes along."""

    def __init__(self, draw: Draw, along: Sequence[int] | None, said: Callable[[], None]) -> None:
        self.draw, self.along, self.said = draw, along, said
        self.choices: list[int] = []
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        log_probs = scores[0].float().log_softmax(-1).cpu()
        if not bool(torch.isfinite(log_probs).all()):
            raise EvaluationError(
                "the model computes values that are not finite; its weights are damaged or too "
                "large for their dtype"
            )
        place = len(self.choices)
        self.choices.append(self.draw.token(log_probs, place))
        self.log_probs.append(log_probs)
        only = torch.full_like(scores, -torch.inf)
        only[0, self.choices[-1] if self.along is None else self.along[place]] = 0
        self.said()
        return only


@torch.inference_mode()
def speak(
    model: PreTrainedModel,
    prompt: Sequence[int],
    most: int,
    draw: Draw,
    said: Callable[[], None],
    along: Spoken | None = None,
) -> Spoken:
    """Continue a prompt by at most `most` tokens, or go along a reply of exactly its tokens.

    Both take the same steps, so models with the same weights say the same. Of the model's own
    settings for generation, only the tokens that end a reply count. said: called after each token.
    Raises EvaluationError if the model cannot be run so, and whatever `said` raises.
    """
    where = model.config.name_or_path or "the model"
    if not model.can_generate():
        raise EvaluationError(
            f"{where} is a {type(model).__name__}, which does not continue a text, so it cannot "
            "be asked"
        )
    chooser = _Chooser(draw, None if along is None else along.tokens, said)
    asked = torch.tensor([list(prompt)], device=model.device)
    settings, ends = _settings(model)
    length = most if along is None else len(along.tokens)
    model.generation_config = GenerationConfig(**settings)
    try:
        model.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            generation_config=GenerationConfig(**settings, max_new_tokens=length, do_sample=False),
            logits_processor=LogitsProcessorList([chooser]),
        )
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"{where} and a reply of {most} tokens do not fit into the memory of the device; ask "
            "for fewer tokens, or choose cpu"
        ) from error
    except DersError:
        raise
    except Exception as error:  # a model of any family may fail in any way
        raise EvaluationError(
            f"{where} cannot continue a text with transformers {transformers.__version__}: "
            f"{words(error)}"
        ) from error
    choices = tuple(chooser.choices)
    tokens = choices if along is None else along.tokens
    return Spoken(tokens, choices, torch.stack(chooser.log_probs), tokens[-1] in ends)


def _settings(model: PreTrainedModel) -> tuple[dict[str, Any], frozenset[int]]:
    """The special tokens that generation needs, and those that end a reply. Padding, which one
    reply has none of, is any token."""
    names = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
    known = {name: getattr(model.generation_config, name, None) for name in names}
    ends = known["eos_token_id"]
    ending = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
    return {**known, "pad_token_id": min(ending, default=0)}, ending
