"""What an original and its compressed form say to the same prompt, token by token."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from ders_core.units import number_text

MOST_TOKENS = 1024
"""Of a reply; the probabilities of the whole vocabulary are in memory for each."""

MOST_TEMPERATURE = 5.0


class ReplyToken(BaseModel):
    """One token of a reply, and what the other model says after the same tokens.

    text: its part of the reply; "" where a character takes several tokens and this is not its last.
    other: what the other model would say here; None if it would say the same. chance, other_chance:
    the probability of this token by the model that wrote it, and by the other one. kl:
    KL(original ‖ compressed) of the whole prediction, nats.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str
    other: str | None = None
    chance: float
    other_chance: float
    kl: float


class Reply(BaseModel):
    """What one model says. tokens: at least one. ended: whether it came to an end by itself."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tokens: tuple[ReplyToken, ...]
    ended: bool

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def differences(self) -> int:
        """Tokens in whose place the other model would say another one."""
        return sum(token.other is not None for token in self.tokens)

    @property
    def kl(self) -> float:
        """Mean over the tokens, nats a token."""
        return sum(token.kl for token in self.tokens) / len(self.tokens)


class Replies(BaseModel):
    """Both replies to one prompt. same: how many tokens both begin with. temperature: 0 where each
    token is the most likely one. seed: of the chances that both models share; None where chance has
    no part. dtype: in which was computed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str
    prompt_tokens: int
    original: Reply
    compressed: Reply
    same: int
    temperature: float
    seed: int | None
    dtype: str
    device: str
    seconds: float

    @property
    def are_same(self) -> bool:
        """Whether both say the same from the first token to the last."""
        return self.same == len(self.original.tokens) == len(self.compressed.tokens)

    @property
    def sentence(self) -> str:
        """What came of it."""
        tokens, differences = len(self.original.tokens), self.original.differences
        kl = f"KL {number_text(self.original.kl)} nats a token"
        if self.are_same:
            return f"Both say the same {tokens} tokens; {kl}."
        return (
            f"Along the original's {tokens} tokens the compressed model would say another one "
            f"{differences} times; {kl}. The replies part after {self.same} tokens."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `ders ask --json` prints them."""
        return self.model_dump(mode="json")

    def rows(self) -> list[dict[str, Any]]:
        """A row for each token of both replies, for a table."""
        return [
            {"reply": name, "token": number, **token.model_dump()}
            for name, reply in (("original", self.original), ("compressed", self.compressed))
            for number, token in enumerate(reply.tokens, start=1)
        ]
