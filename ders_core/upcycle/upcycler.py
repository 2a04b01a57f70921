"""Upcycle: turn a dense model into an MoE, train it, and write it packed."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PrinterCallback

from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.progress import Meter, Progress, Tell, quiet
from ders_core.evaluate import evaluate
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.forward import answers
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.windows import (
    check_vocabulary,
    fitting_window,
    token_windows,
)
from ders_core.files.inputs import check_inputs, unchanged_inputs
from ders_core.files.json_object import read_json
from ders_core.files.output import check_room, new_target, output_directory, partial_path
from ders_core.files.writer import write_json
from ders_core.hf import describe, load_tokenizer
from ders_core.hf.silence import silent
from ders_core.packed.manifest import FORMAT_VERSION
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.quality import Quality
from ders_core.upcycle.callbacks import Measure, memory
from ders_core.upcycle.checkpoints import Checkpoints, clear, find_checkpoints
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.continual import FromPacked
from ders_core.upcycle.data import Windows
from ders_core.upcycle.history import HISTORY, read_history
from ders_core.upcycle.saving import RECORD, public_config
from ders_core.upcycle.sources import FromDense, TrainableModel, TrainingInput
from ders_core.upcycle.trainer import UpcyclingTrainer
from ders_core.upcycle.training import computable, train

CHECKPOINTS = ".training"
"""The folder of training checkpoints in an unfinished output."""


@dataclass(frozen=True)
class UpcycleResult:
    """The result of upcycling. Perplexities are on the held-out text, None without one: of the
    model that came in, and of the packed checkpoint as it was written.

    parameters: values that the packed checkpoint stores; trained: how many of them were trained.
    start_difference: the largest difference of a logit between the model that came in and the MoE
    before the first step. dense_bytes, packed_bytes: of the weight files. moe_bytes: of the MoE
    that the packed checkpoint stands for. peak_memory: bytes, from the history. precision: the
    dtype of computation, and why it is not the one that was asked for; "" in records of earlier
    versions. resumed: where an interrupted training went on, and why not later; "" if none was.
    """

    out: str
    label: str
    steps: int
    parameters: int
    trained: int
    dense_bytes: int
    packed_bytes: int
    moe_bytes: int
    start_difference: float
    dense_perplexity: float | None
    perplexity: float | None
    peak_memory: int
    device: str
    seconds: float
    precision: str = ""
    resumed: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def upcycle(
    dense: str | Path,
    out: str | Path,
    config: UpcycleConfig,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: Progress = quiet,
) -> UpcycleResult:
    """Turn the dense model at `dense` into an MoE, train it, and write it to the new directory
    `out` as a packed checkpoint.

    resume: continue from the newest whole training checkpoint of an interrupted run of the same
    model and configuration; damaged ones are removed, and the result says so. With `bf16` on a
    device that has no instructions for it, float32 is computed, and the result says so. progress
    counts steps. Under `torchrun` or `accelerate launch` every process calls this; the first one
    writes.
    Raises DersError and its children, also if the model or a text is written meanwhile. Then there
    is no `out`, and `<out>.partial` keeps the training checkpoints.
    """
    return _run(lambda: FromDense(dense, config), out, device, resume, progress)


def upcycle_further(
    packed: str | Path,
    out: str | Path,
    config: UpcycleConfig,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: Progress = quiet,
) -> UpcycleResult:
    """Train further deltas on the upcycled checkpoint at `packed`, whose base and deltas stay (see
    `ders_core.upcycle.continual`); otherwise as `upcycle`."""
    return _run(lambda: FromPacked(packed, config), out, device, resume, progress)


@unchanged_inputs()
def _run(
    opened: Callable[[], TrainingInput],
    out: str | Path,
    device: str,
    resume: bool,
    progress: Progress,
) -> UpcycleResult:
    where = resolve_device(device)
    processes = PartialState(cpu=where.type == "cpu")
    if processes.is_main_process:
        new_target(out, resume=resume)
    start, place = opened(), Path(out).expanduser()
    config = start.config
    if where.type == "cuda":
        where = processes.device
    start.config, precision = computable(config, where)
    if processes.is_main_process and not resume:  # else a part of it is there already
        check_room(place.parent, start.room())
    begun = time.monotonic()
    meter = Meter(config.training.steps, progress if processes.is_main_process else quiet)
    folder = partial_path(place) / CHECKPOINTS
    found = find_checkpoints(folder) if resume else Checkpoints()
    resumed = found.sentence if resume and folder.is_dir() else ""
    meter.at(found.step, "reading the texts")
    texts = _Texts.of(start)  # before there is a directory: what is refused leaves none
    if not processes.is_main_process:
        processes.wait_for_everyone()  # until the first one has its directory
        _train(start, texts, folder, find_checkpoints(folder), where, meter, None)
        processes.wait_for_everyone()
        return read_result(place)
    content = start.store.content(lambda _, message: meter.report(message))
    work = {
        "format_version": FORMAT_VERSION,
        "from": content,
        "config": config.model_dump(mode="json"),
    }
    with output_directory(place, work=work, resume=resume, needs=start.room()) as partial:
        folder.mkdir(exist_ok=True)
        clear(folder, found)
        processes.wait_for_everyone()
        if resumed:
            meter.report(resumed)
        model = _train(start, texts, folder, found, where, meter, partial / HISTORY)
        steps = config.training.steps
        meter.finish("writing the packed checkpoint")
        start.save(partial, model)
        check_inputs()
        record = {"config": public_config(config), "modules": model.modules, **start.record()}
        write_json(partial / RECORD, record)
        trained = sum(
            parameter.numel() for parameter in model.network.parameters() if parameter.requires_grad
        )
        model.network.to("meta")  # frees its memory for the measurement
        quality = _evaluate_written(start, partial, where, meter)
        packed = PackedCheckpoint(partial)
        result = UpcycleResult(
            out=str(place),
            label=config.label,
            steps=steps,
            parameters=_stored_values(packed),
            trained=trained,
            dense_bytes=start.store.bytes_total,
            packed_bytes=packed.bytes_total,
            moe_bytes=packed.manifest.source.bytes_total,
            start_difference=model.difference,
            dense_perplexity=quality.reference_perplexity if quality else None,
            perplexity=quality.perplexity if quality else None,
            peak_memory=int(max(read_history(partial).steps["memory"], default=memory(where))),
            device=device_label(where),
            seconds=time.monotonic() - begun,
            precision=precision,
            resumed=resumed,
        )
        fields = {key: value for key, value in result.to_dict().items() if key != "out"}
        write_json(partial / RECORD, {"result": fields, **record})
        shutil.rmtree(folder)
    processes.wait_for_everyone()
    return result


def read_result(out: Path) -> UpcycleResult:
    """The result in a finished output. Raises CheckpointError if `out` is not one."""
    return UpcycleResult(out=str(out), **read_json(out / RECORD)["result"])


@dataclass(frozen=True)
class _Texts:
    """The texts as windows of tokens. heldout: `[n, window]` int64, None without one."""

    training: Windows
    heldout: torch.Tensor | None

    @classmethod
    def of(cls, start: TrainingInput) -> _Texts:
        """Raises EvaluationError for a text that cannot be used."""
        config = start.config
        facts = describe(start.store.path)
        tokenizer = load_tokenizer(facts.path)
        window = fitting_window(config.data.window, [facts.positions])
        training, heldout = Windows(config.data.texts, tokenizer, window), None
        check_vocabulary(training.tokens, facts.vocabulary, tokenizer, facts.path)
        if config.data.heldout is not None:
            text, tokens = read_text(config.data.heldout, tokenizer), config.training.heldout_tokens
            heldout = token_windows(tokenizer, text, window, tokens)
            check_vocabulary(heldout, facts.vocabulary, tokenizer, facts.path)
        return cls(training, heldout)


def _train(
    start: TrainingInput,
    texts: _Texts,
    folder: Path,
    found: Checkpoints,
    where: torch.device,
    meter: Meter,
    history: Path | None,
) -> TrainableModel:
    """Make the MoE and train it. folder: of the training checkpoints; found: those in it. history:
    None in processes that only compute along."""
    config, windows = start.config, texts.training
    model = start.model(where, windows, meter)
    with silent():
        trainer = UpcyclingTrainer(model.network, model.blocks, config, windows, folder, where.type)
        trainer.remove_callback(PrinterCallback)
        train(
            trainer,
            config,
            found,
            history,
            meter,
            _measure(texts.heldout, config.training.batch),
        )
    model.network.eval()
    return model


def _evaluate_written(
    start: TrainingInput, partial: Path, where: torch.device, meter: Meter
) -> Quality | None:
    """Compare the packed checkpoint with the model that came in, if there is a held-out text."""
    config = start.config
    if config.data.heldout is None:
        return None
    meter.report("measuring what was written")
    return evaluate(
        partial,
        start.store.path,
        text=config.data.heldout,
        device=where.type,
        max_tokens=config.training.heldout_tokens,
        window=config.data.window,
        batch=config.training.batch,
        dtype=start.precision,
    )


def _measure(windows: torch.Tensor | None, batch: int) -> Measure | None:
    """A function that measures a model's perplexity on the held-out text; None if there is none."""
    if windows is None:
        return None

    def measure(model: PreTrainedModel, tell: Tell) -> float:
        totals = Totals()
        for number, window_answers in enumerate(answers(model, windows, batch), 1):
            totals.add(window_answers)
            tell(f"measuring the held-out text: window {number} of {len(windows)}")
        return totals.perplexity

    return measure


def _stored_values(packed: PackedCheckpoint) -> int:
    """How many floating-point values a packed checkpoint stores."""
    infos = packed.store.tensors.values()
    return sum(math.prod(info.shape) for info in infos if info.dtype.is_float)
