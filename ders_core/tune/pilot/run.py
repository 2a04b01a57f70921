"""The stages of a pilot, each kept in a directory, so that one that was killed goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ders_core.analysis import analyze
from ders_core.calibrate import calibrate, has_room_for_each
from ders_core.checkpoint import Checkpoint
from ders_core.compute.device import resolve_device
from ders_core.compute.progress import Progress, quiet
from ders_core.errors import OutputError
from ders_core.evaluate.continuation import (
    Prompt,
    continuations,
    prompts_of_texts,
    prompts_of_windows,
)
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.domains import Domain
from ders_core.evaluate.evaluator import text_domains
from ders_core.files.address import name_of
from ders_core.files.checksum import file_checksum
from ders_core.files.inputs import leave_out, unchanged_inputs
from ders_core.files.json_object import read_json
from ders_core.files.named_texts import NamedTexts, by_name
from ders_core.files.place_errors import writing
from ders_core.files.texts import text_files
from ders_core.files.writer import write_json
from ders_core.hf import describe, load_tokenizer, shared_dtype
from ders_core.pipeline.calibration import Calibration
from ders_core.recipe import Recipe
from ders_core.tune.allocate import Allocation, Solver
from ders_core.tune.frontier import frontier
from ders_core.tune.measuring import Measuring, Setting
from ders_core.tune.pilot.answers import ORIGINAL, AnswerFiles
from ders_core.tune.pilot.outcome import Asked, Pilot, Point, Risk
from ders_core.tune.pilot.points import Aim, Ladder
from ders_core.tune.pilot.risks import risks_of
from ders_core.tune.pilot.texts import Parts, parts_of, split_text
from ders_core.tune.scores import Scores
from ders_core.tune.scoring import score
from ders_core.tune.unseen import check_unseen
from ders_core.tune.written import as_recipe

STATE, VERDICT, CALIBRATION = "pilot.json", "verdict.json", "calibration.safetensors"
TRIALS, TEXTS, SCORES = "trials", "texts", "scores"

PROMPTS, ANSWER = 3, 48
"""Windows whose beginnings are prompts, and tokens of an answer."""

SIZES = 15
"""Of the predicted frontier."""


@dataclass(frozen=True)
class Wishes:
    """setting: how is measured; its text is cut in two, unless there is `heldout`, on which alone
    is measured then. prompts: texts; () for the beginnings of windows that are measured on. tokens:
    that are calibrated on, at most. friendly: forms alone that hardware decodes easily."""

    setting: Setting
    heldout: NamedTexts | None = None
    prompts: tuple[str, ...] = ()
    tokens: int = 12288
    friendly: bool = False


@unchanged_inputs()
def pilot(
    checkpoint: Checkpoint,
    directory: Path,
    wishes: Wishes,
    *,
    scores: Path | None = None,
    progress: Progress = quiet,
) -> Pilot:
    """Run the stages on a local checkpoint.

    directory: keeps what each stage gave, and it is used again; packed checkpoints are removed from
    it. scores: where scores are kept; None for a folder of it. Raises OutputError if the directory
    holds a pilot of other files or texts; EvaluationError if a text is too short or cannot be read;
    DersError as analysis, calibration, compression and evaluation do; CheckpointError if a file
    that is read is written meanwhile.
    """
    leave_out(directory)
    _claim(directory, checkpoint, wishes)
    stages = _Stages(checkpoint, directory, wishes, _parts(checkpoint, directory, wishes), progress)
    domains = stages.domains()
    verdict, reason = stages.verdict()
    calibration = stages.calibrated()
    doubts = check_unseen(checkpoint, calibration, stages.setting)
    scored = score(
        checkpoint, calibration, directory=scores or directory / SCORES, progress=progress
    )
    points, asked = stages.measured(scored, calibration, domains)
    risks = [
        Risk(
            what=f"{doubt[0].upper()}{doubt[1:]}.",
            fallback="Give a --heldout text of another source.",
        )
        for doubt in doubts
    ]
    solver = Solver(scored, "bytes", friendly=wishes.friendly)
    curve = frontier(solver, *solver.sizes, SIZES)
    return Pilot(
        name=name_of(checkpoint.path),
        identity=checkpoint.identity,
        verdict=verdict,
        reason=reason,
        bytes_total=checkpoint.bytes_total,
        calibration=str(calibration),
        tokens=Calibration.open(calibration).tokens,
        proved=sum(domain.predicted for domain in domains),
        texts=stages.parts.told,
        curve=tuple((each.nbytes, each.predicted_kl) for each in curve),
        points=points,
        prompts=asked,
        risks=(*risks, *risks_of(verdict, scored, points, domains)),
    )


def _claim(directory: Path, checkpoint: Checkpoint, wishes: Wishes) -> None:
    """Raise OutputError if the directory holds the pilot of something else."""
    texts = [wishes.setting.text, *([] if wishes.heldout is None else [wishes.heldout])]
    work = {
        "checkpoint": checkpoint.identity,
        "texts": [
            {
                name: [file_checksum(file) for file in text_files(paths)]
                for name, paths in by_name(text).items()
            }
            for text in texts
        ],
        "tokens": wishes.tokens,
        "window": wishes.setting.window,
    }
    file = directory / STATE
    if file.is_file():
        if read_json(file) != work:
            raise OutputError(
                f"{directory} holds the pilot of another checkpoint, of other texts or tokens; "
                "give another directory, or remove it"
            )
        return
    with writing(file):
        directory.mkdir(parents=True, exist_ok=True)
        write_json(file, work)


def _parts(checkpoint: Checkpoint, directory: Path, wishes: Wishes) -> Parts:
    if wishes.heldout is not None:
        return parts_of(wishes.setting.text, wishes.heldout)
    trusted = wishes.setting.trust_remote_code
    tokenizer = load_tokenizer(checkpoint.path, trust_remote_code=trusted)
    read = partial(read_text, tokenizer=tokenizer)
    return split_text(wishes.setting.text, read, directory / TEXTS)


@dataclass(frozen=True)
class _Stages:
    checkpoint: Checkpoint
    directory: Path
    wishes: Wishes
    parts: Parts
    progress: Progress

    @property
    def setting(self) -> Setting:
        return replace(self.wishes.setting, text=self.parts.heldout)

    def domains(self) -> list[Domain]:
        """The windows that are measured on; what cannot be is refused before any stage."""
        setting = self.setting
        return text_domains(
            self.checkpoint.path,
            setting.text,
            max_tokens=setting.max_tokens,
            window=setting.window,
            trust_remote_code=setting.trust_remote_code,
        )

    def verdict(self) -> tuple[str, str]:
        """A word and sentences of the whole analysis."""
        file = self.directory / VERDICT
        if file.is_file():
            known = read_json(file)
            return str(known.get("verdict")), str(known.get("sentence"))
        device = self.setting.device
        analysis = analyze(self.checkpoint, spectra="none", device=device, progress=self.progress)
        found = analysis.verdict
        with writing(file):
            write_json(file, {"verdict": found.verdict, "sentence": found.sentence})
        return found.verdict, found.sentence

    def calibrated(self) -> Path:
        file, setting = self.directory / CALIBRATION, self.setting
        if not file.exists():
            calibrate(
                self.checkpoint.path,
                file,
                text=self.parts.calibration,
                device=setting.device,
                max_tokens=self.wishes.tokens,
                window=setting.window,
                batch=setting.batch,
                gradients=True,
                others=True,
                each_expert=has_room_for_each(self.checkpoint),
                trust_remote_code=setting.trust_remote_code,
                progress=self.progress,
            )
        return file

    def measured(
        self, scores: Scores, calibration: Path, domains: list[Domain]
    ) -> tuple[tuple[Point, ...], tuple[Asked, ...]]:
        """The points, the largest first, and the prompts with what the original wrote."""
        setting, trials = self.setting, self.directory / TRIALS
        tokenizer = load_tokenizer(
            self.checkpoint.path, trust_remote_code=setting.trust_remote_code
        )
        prompts = (
            prompts_of_texts(self.wishes.prompts, tokenizer)
            if self.wishes.prompts
            else prompts_of_windows(domains, tokenizer, PROMPTS, ANSWER)
        )
        context = {
            "checkpoint": self.checkpoint.identity,
            "calibration": scores.calibration,
            "device": setting.device,
        }
        files = AnswerFiles(trials, context, prompts)
        writer = _Writer(self.checkpoint, setting, prompts)
        self.progress(0, 0, "the original goes on with the prompts")
        original = files.of(ORIGINAL, lambda: writer.answers(self.checkpoint.path))
        ladder = Ladder(Solver(scores, "kl", friendly=self.wishes.friendly))
        points = list[Point]()
        with Measuring(
            self.checkpoint, scores.calibration, trials, setting, self.progress
        ) as measuring:
            for number, (aim, allocation) in enumerate(ladder.steps(), 1):
                name = f"pilot-{number}-{aim.role}"
                recipe = as_recipe(allocation, self.checkpoint, calibration, name=name)
                what = f"size {number}, {aim.role}"
                point = _point(measuring, files, writer, recipe, what, aim, allocation)
                ladder.learn(point.measured.kl, point.predicted_kl)
                points.append(point)
        asked = [
            Asked(prompt=prompt.text, came=prompt.came, original=answer)
            for prompt, answer in zip(prompts, original, strict=True)
        ]
        return tuple(points), tuple(asked)


@dataclass(frozen=True)
class _Writer:
    """Lets models go on with prompts, all in the dtype of the original's computation."""

    checkpoint: Checkpoint
    setting: Setting
    prompts: list[Prompt]

    def answers(self, model: Path) -> list[str]:
        trusted = self.setting.trust_remote_code
        facts = describe(self.checkpoint.path, trust_remote_code=trusted)
        return continuations(
            model,
            self.prompts,
            load_tokenizer(facts.path, trust_remote_code=trusted),
            length=ANSWER,
            device=self.setting.device,
            dtype=shared_dtype([facts], resolve_device(self.setting.device)),
            trust_remote_code=trusted,
        )


def _point(
    measuring: Measuring,
    files: AnswerFiles,
    writer: _Writer,
    recipe: Recipe,
    what: str,
    aim: Aim,
    allocation: Allocation,
) -> Point:
    """Compressed once, for its answers and its measurement, unless both are known."""
    text = recipe.to_yaml()
    measurement, answers = measuring.known(recipe), files.read(text)
    if measurement is None or answers is None:
        with measuring.packed(recipe, what) as made:
            answers = files.of(text, lambda: writer.answers(made.path))
            measurement = measurement or measuring.measure_packed(made, recipe, what)
    return Point(
        role=aim.role,
        aim=aim.aim,
        asked=aim.asked,
        recipe=text,
        predicted_kl=allocation.predicted_kl,
        foretold_bytes=allocation.nbytes,
        measured=measurement,
        answers=answers,
    )
