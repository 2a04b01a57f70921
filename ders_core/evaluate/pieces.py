"""Tokens as the parts of a text that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pieces:
    """A text and where its tokens part it. cuts: `tokens + 1` places in the text, ascending."""

    tokenizer: PreTrainedTokenizerBase
    tokens: tuple[int, ...]
    text: str
    cuts: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> Pieces:
        """A character that takes several tokens belongs to the last of them."""
        text, cuts = decoded(tokenizer, tokens), [0]
        for number in range(1, len(tokens)):
            begun = _common(text, decoded(tokenizer, tokens[:number]))
            cuts.append(max(cuts[-1], begun))
        return cls(tokenizer, tuple(tokens), text, (*cuts, len(text)))

    def __getitem__(self, place: int) -> str:
        """The part of a token."""
        return self.text[self.cuts[place] : self.cuts[place + 1]]

    def instead(self, place: int, token: int) -> str:
        """What another token would add in this place."""
        before = self.text[: self.cuts[place]]
        text = decoded(self.tokenizer, [*self.tokens[:place], token])
        if text.startswith(before):
            return text[len(before) :]
        return decoded(self.tokenizer, [token])


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of tokens, special ones too."""
    return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def _common(first: str, second: str) -> int:
    """How many characters both begin with."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    )
