"""Ask an original and its packed form the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec
from ders_core.pipeline.replies import MOST_TEMPERATURE, MOST_TOKENS, Replies

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext

TITLE = 60
"""Characters of a prompt that name the job."""


class AskSpec(Spec):
    """packed: any form of `original`; name: what pages call it. prompt: text; chat: it is written
    as a user's message by the original's chat template. max_tokens: of a reply. temperature: 0 for
    the most likely token each; else by chance, from `seed`. trust_remote_code: run code that comes
    with the models, with the worker's rights."""

    packed: str
    original: str
    name: str = ""
    prompt: str = Field(min_length=1, max_length=100_000)
    max_tokens: int = Field(default=64, ge=1, le=MOST_TOKENS)
    temperature: float = Field(default=0.0, ge=0, le=MOST_TEMPERATURE)
    seed: int = Field(default=0, ge=0)
    chat: bool = False
    device: Device = "auto"
    trust_remote_code: bool = False


class AskResult(Result, Replies):
    """Both replies."""


@KINDS.register
class Ask(Kind[AskSpec, AskResult]):
    """What both say to one prompt."""

    name = "ask"
    steps = ("ask",)
    spec = AskSpec
    result = AskResult

    def title(self, spec: AskSpec) -> str:
        printable = "".join(each if each.isprintable() else " " for each in spec.prompt)
        words = " ".join(printable.split())
        short = words if len(words) <= TITLE else f"{words[: TITLE - 1]}…"
        return f"Ask: {short}" if short else "Ask"

    def run(self, context: TaskContext, spec: AskSpec) -> AskResult:
        from ders_core.evaluate import compare_replies

        packed, original = context.allowed(spec.packed), context.allowed(spec.original)
        device = context.device(spec.device)

        def ask() -> dict[str, Any]:
            return compare_replies(
                packed,
                original,
                spec.prompt,
                device=device,
                max_tokens=spec.max_tokens,
                temperature=spec.temperature,
                seed=spec.seed,
                chat=spec.chat,
                trust_remote_code=spec.trust_remote_code,
                progress=context.progress,
            ).to_dict()

        replies = context.step("ask", ask, context.directory() / "replies.json")
        return AskResult.model_validate(replies)
