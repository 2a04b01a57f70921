"""A run: compress a checkpoint, verify what was written, and evaluate it if there is a text or
tasks. What a text measured is kept before tasks begin; a run that is resumed does not measure it
again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_serializer

from ders_core.errors import OutputError
from ders_core.files.address import is_remote
from ders_core.jobs.kind import KINDS, Device, Kind, Spec, TextSpec
from ders_core.jobs.results import PackedResult
from ders_core.jobs.workspace import place_label
from ders_core.pipeline.quality import Quality
from ders_core.pipeline.report import Outlook, Report
from ders_core.pipeline.task_scores import TaskScore, is_task_file

if TYPE_CHECKING:
    from ders_core.files.named_texts import NamedTexts
    from ders_core.jobs.context import TaskContext
    from ders_core.recipe import Recipe

PACKED = "packed"
RECIPE = "recipe.yaml"
REPORT = "report.json"
QUALITY = "quality.json"
TASKS = "tasks.json"


class RunSpec(Spec):
    """Compress, verify and, if there is a text, evaluate. recipe: YAML text; workers: threads,
    None for as many as there are cores. text: one path, or several that are read as one text; or
    texts by names, which are measured apart too. trust_remote_code: evaluate with code that comes
    with the model, and task files, which run with the worker's rights. tasks: of lm-eval, asked of
    both models too; limit: questions of each, None for all."""

    checkpoint: str
    recipe: str
    name: str = ""
    device: Device = "auto"
    workers: int | None = Field(default=None, ge=1)
    text: TextSpec | None = None
    max_tokens: int = Field(default=8192, ge=2)
    trust_remote_code: bool = False
    tasks: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)


class RunResult(PackedResult):
    """report: what the recipe did, group by group. quality: None if it was not measured. tasks:
    what was reached on each, if there were any."""

    report: Report | None = None
    quality: Quality | None = None
    tasks: tuple[TaskScore, ...] = ()

    @field_serializer("report")
    def _write_report(self, report: Report | None) -> dict[str, Any] | None:
        return None if report is None else report.to_dict()

    @property
    def measured(self) -> Quality | None:
        return self.quality

    @property
    def outlook(self) -> Outlook:
        return Outlook() if self.report is None else self.report.outlook


@KINDS.register
class Run(Kind[RunSpec, RunResult]):
    """Compress with a recipe, verify, evaluate."""

    name = "run"
    steps = ("compress", "verify", "evaluate")
    spec = RunSpec
    result = RunResult

    def title(self, spec: RunSpec) -> str:
        return spec.name or f"Compress {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: RunSpec) -> RunResult:
        from ders_core.files.writer import write_text
        from ders_core.recipe import Recipe

        checkpoint = context.checkpoint(spec.checkpoint)
        recipe = Recipe.from_yaml(spec.recipe)
        for path in recipe.files:
            context.allowed(str(path))
        text = context.allowed_named_texts(spec.text) if spec.text is not None else None
        directory = context.directory()
        write_text(directory / RECIPE, spec.recipe)
        packed, device = directory / PACKED, context.device(spec.device)
        spec = spec.model_copy(update={"tasks": _allowed_tasks(context, spec)})
        is_measured = bool(text is not None or spec.tasks) and not is_remote(checkpoint)
        if is_measured and not (directory / REPORT).exists():
            _check_evaluation(spec, checkpoint, text)

        report = context.step(
            "compress",
            lambda: _compress(context, checkpoint, packed, recipe, device, spec.workers),
            directory / REPORT,
        )
        verification = context.step(
            "verify",
            lambda: _verify(context, packed, checkpoint),
            directory / "verification.json",
        )
        measured: dict[str, Any] | None = None
        asked: dict[str, Any] = {}
        if is_measured and text is not None:
            measured = context.step(
                "evaluate",
                lambda: _evaluate(context, spec, packed, checkpoint, text, device),
                directory / QUALITY,
            )
        if is_measured and spec.tasks:
            asked = context.step(
                "evaluate",
                lambda: _ask(context, spec, packed, checkpoint, device),
                directory / TASKS,
            )
        if is_remote(checkpoint):
            context.skip(
                "evaluate", "the original is not on this machine; download it to measure quality"
            )
        elif not is_measured:
            context.skip("evaluate", "there is no text, so the quality was not measured")
        return RunResult.model_validate(
            {
                "packed": str(packed),
                "report": report,
                "verification": verification,
                "quality": measured,
                "tasks": asked.get("tasks", ()),
                "bytes_before": report["bytes_before"],
                "bytes_after": report["bytes_after"],
                "ratio": report["ratio"],
                "device": device,
            }
        )


def _allowed_tasks(context: TaskContext, spec: RunSpec) -> tuple[str, ...]:
    """The tasks, of which files are full paths without links. Raises JobError for a file outside
    the roots."""
    return tuple(str(context.allowed(task)) if is_task_file(task) else task for task in spec.tasks)


def _check_evaluation(spec: RunSpec, checkpoint: Path, text: NamedTexts | None) -> None:
    """Refuse before hours of compression what the evaluation would refuse after them."""
    from ders_core.evaluate import check_evaluation
    from ders_core.evaluate.tasks import check_tasks
    from ders_core.hf import describe, load_tokenizer

    check_tasks(spec.tasks, trust_remote_code=spec.trust_remote_code)
    if text is None:
        facts = describe(checkpoint, trust_remote_code=spec.trust_remote_code)
        load_tokenizer(facts.path, trust_remote_code=spec.trust_remote_code)
    else:
        check_evaluation(
            checkpoint,
            text=text,
            max_tokens=spec.max_tokens,
            trust_remote_code=spec.trust_remote_code,
        )


def _compress(
    context: TaskContext,
    checkpoint: Path,
    packed: Path,
    recipe: Recipe,
    device: str,
    workers: int | None,
) -> dict[str, Any]:
    from ders_core.pipeline.compress import compress

    if packed.exists():  # an earlier attempt finished it and died before it wrote the report
        shutil.rmtree(packed)
    with context.engine(workers, device) as engine:
        report = compress(
            checkpoint,
            packed,
            recipe,
            device=device,
            resume=True,
            runner=engine.run,
            progress=context.progress,
        )
    if report.renewed:
        context.log(
            "groups that were encoded again, because their weights in the original have changed "
            f"since the earlier attempt: {report.renewed}",
            "warning",
        )
    if report.missed:
        context.log(report.missed, "warning")
    return report.to_dict()


def _verify(context: TaskContext, packed: Path, checkpoint: Path) -> dict[str, Any]:
    from ders_core.pipeline.verify import verify

    verification = verify(packed, checkpoint, progress=context.progress)
    if not verification.ok:
        (context.directory() / REPORT).unlink()
        raise OutputError(f"{verification.problems[0]}; resume this run to write it again")
    return verification.to_dict()


def _evaluate(
    context: TaskContext,
    spec: RunSpec,
    packed: Path,
    checkpoint: Path,
    text: NamedTexts,
    device: str,
) -> dict[str, Any]:
    """The fields of `Quality`."""
    from ders_core.evaluate import evaluate

    return evaluate(
        packed,
        checkpoint,
        text=text,
        device=device,
        max_tokens=spec.max_tokens,
        trust_remote_code=spec.trust_remote_code,
        progress=context.progress,
    ).to_dict()


def _ask(
    context: TaskContext, spec: RunSpec, packed: Path, checkpoint: Path, device: str
) -> dict[str, Any]:
    """What both models reach, as `tasks`."""
    from ders_core.evaluate.tasks import evaluate_tasks

    scores = evaluate_tasks(
        packed,
        spec.tasks,
        checkpoint,
        limit=spec.limit,
        device=device,
        trust_remote_code=spec.trust_remote_code,
        progress=context.progress,
    )
    return {"tasks": [score.model_dump(mode="json") for score in scores]}
