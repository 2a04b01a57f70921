"""Ask an original and several of its packed forms the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec
from ders_core.pipeline.replies import Replies

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext

MOST_MODELS, MOST_PROMPTS, MOST_TOKENS = 6, 8, 256
"""The log-probabilities of all replies are in memory."""


class AskedModel(Spec):
    """A packed form of the original, and what pages call it."""

    name: str
    packed: str


class CompareSpec(Spec):
    """models: forms of `original`. prompts: texts that all continue. max_tokens: of a reply.
    trust_remote_code: run code that comes with the models, with the worker's rights."""

    original: str
    models: tuple[AskedModel, ...] = Field(min_length=1, max_length=MOST_MODELS)
    prompts: tuple[str, ...] = Field(min_length=1, max_length=MOST_PROMPTS)
    max_tokens: int = Field(default=48, ge=1, le=MOST_TOKENS)
    device: Device = "auto"
    trust_remote_code: bool = False


class CompareResult(Result):
    """replies: `[models][prompts]`. identities: of the checkpoints that were asked, by path."""

    replies: tuple[tuple[Replies, ...], ...]
    identities: dict[str, str]


@KINDS.register
class Compare(Kind[CompareSpec, CompareResult]):
    """What all say to the same prompts."""

    name = "compare"
    steps = ("ask",)
    spec = CompareSpec
    result = CompareResult

    def title(self, spec: CompareSpec) -> str:
        prompts = "1 prompt" if len(spec.prompts) == 1 else f"{len(spec.prompts)} prompts"
        forms = "1 run" if len(spec.models) == 1 else f"{len(spec.models)} runs"
        return f"Ask {forms} {prompts}"

    def run(self, context: TaskContext, spec: CompareSpec) -> CompareResult:
        from ders_core.evaluate import compare_all_replies
        from ders_core.packed.open import open_checkpoint

        original = context.allowed(spec.original)
        packed = [context.allowed(model.packed) for model in spec.models]
        device = context.device(spec.device)

        def ask() -> dict[str, Any]:
            places = zip(
                (spec.original, *(model.packed for model in spec.models)),
                (original, *packed),
                strict=True,
            )
            identities = {place: open_checkpoint(path).identity for place, path in places}
            replies = compare_all_replies(
                packed,
                original,
                spec.prompts,
                device=device,
                max_tokens=spec.max_tokens,
                trust_remote_code=spec.trust_remote_code,
                progress=context.progress,
            )
            told = [[each.to_dict() for each in row] for row in replies]
            return {"replies": told, "identities": identities}

        return CompareResult.model_validate(
            context.step("ask", ask, context.directory() / "replies.json")
        )
