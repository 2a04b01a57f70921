"""Upcycle: a dense model in, a packed MoE out."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from ders_core.checkpoint.output import output_directory, partial_path
from ders_core.checkpoint.store import read_json
from ders_core.checkpoint.writer import write_json
from ders_core.device import device_label, resolve_device
from ders_core.evaluate import evaluate
from ders_core.evaluate.forward import answers
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.windows import fitting_window, read_text, token_windows
from ders_core.hf import load_model, load_tokenizer
from ders_core.hf.silence import silent
from ders_core.packed import PackedCheckpoint
from ders_core.progress import Progress, quiet
from ders_core.upcycle.block import UpcycledFFN
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.data import Windows
from ders_core.upcycle.dense import DenseModel
from ders_core.upcycle.history import HISTORY, read_history
from ders_core.upcycle.loading import RECORD
from ders_core.upcycle.routers import clustered_routers, random_routers
from ders_core.upcycle.saving import save
from ders_core.upcycle.surgery import find_sites, module_paths, upcycle_model
from ders_core.upcycle.target import choose_target
from ders_core.upcycle.training import Measure, UpcyclingTrainer, kept, train

CHECKPOINTS = ".training"
"""The folder of training checkpoints beside an unfinished output's files."""

CLUSTER_WINDOWS = 16
"""Windows of the text that routers which start from clusters look at."""


@dataclass(frozen=True)
class UpcycleResult:
    """What came of it. Perplexities are on the held-out text, None without one: of the dense model
    that went in, and of the packed one as it was written.

    parameters: values that the packed one stores; trained: of these with a gradient.
    start_difference: the largest difference of a logit between the dense model and the MoE before
    the first step. dense_bytes, packed_bytes: of the weight files. moe_bytes: of the layout that
    the packed one stands for. peak_memory: bytes, as the history tells it.
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

    resume: go on from the last training checkpoint of an interrupted run of the same model and
    configuration. progress counts steps. Under `torchrun` or `accelerate launch` every process
    calls this; the first one writes, and only it returns figures.
    Raises DersError and its children; then nothing stands at `out`, and the training checkpoints
    wait in `<out>.partial`.
    """
    parent = DenseModel.open(dense)
    target = choose_target(parent, config)
    where = resolve_device(device)
    processes = PartialState(cpu=where.type == "cpu")
    if where.type == "cuda":
        where = processes.device
    work = {"dense": parent.store.identity, "config": config.model_dump(mode="json")}
    started = time.monotonic()
    place = Path(out).expanduser()
    if not processes.is_main_process:
        processes.wait_for_everyone()  # until the first one has its directory
        _trained(parent, config, partial_path(place), where, None)
        processes.wait_for_everyone()
        return read_result(place)
    with output_directory(place, work=work, resume=resume) as partial:
        processes.wait_for_everyone()
        model, blocks, start = _trained(parent, config, partial, where, progress)
        steps = config.training.steps
        progress(steps, steps, "writing the packed checkpoint")
        save(partial, parent, model, blocks, config, target)
        trained = sum(own.numel() for own in kept(model).values() if own.is_floating_point())
        paths = module_paths(model, blocks)
        model.to("meta")
        quality = None
        if config.data.heldout is not None:
            progress(steps, steps, "measuring what was written")
            quality = evaluate(
                partial,
                parent.path,
                text=config.data.heldout,
                device=where.type,
                max_tokens=config.training.heldout_tokens,
                window=config.data.window,
                batch=config.training.batch,
                dtype=_precision(config),
            )
        packed = PackedCheckpoint(partial)
        result = UpcycleResult(
            out=str(place),
            label=config.label,
            steps=steps,
            parameters=_values(packed),
            trained=trained,
            dense_bytes=parent.store.bytes_total,
            packed_bytes=packed.bytes_total,
            moe_bytes=packed.manifest.source.bytes_total,
            start_difference=start,
            dense_perplexity=quality.reference_perplexity if quality else None,
            perplexity=quality.perplexity if quality else None,
            peak_memory=int(read_history(partial).steps["memory"].max()),
            device=device_label(where),
            seconds=time.monotonic() - started,
        )
        told = {key: value for key, value in result.to_dict().items() if key != "out"}
        write_json(
            partial / RECORD,
            {
                "result": told,
                "config": _public(config),
                "sets": [config.name],
                "dense": parent.path.name,
                "dense_config": parent.config,
                "modules": paths,
            },
        )
        shutil.rmtree(partial / CHECKPOINTS)
    processes.wait_for_everyone()
    return result


def read_result(out: Path) -> UpcycleResult:
    """Of a finished output. Raises CheckpointError if it is none."""
    return UpcycleResult(out=str(out), **read_json(out / RECORD)["result"])


def _trained(
    parent: DenseModel,
    config: UpcycleConfig,
    partial: Path,
    where: torch.device,
    progress: Progress | None,
) -> tuple[PreTrainedModel, dict[int, UpcycledFFN], float]:
    """The trained model, its blocks, and the largest difference of a logit before the first step.
    progress: None in processes that only compute along."""
    tokenizer = load_tokenizer(parent.path)
    window = fitting_window(config.data.window, [parent.config])
    windows = Windows(config.data.texts, tokenizer, window)
    model = load_model(parent.path, device=where.type, dtype=_precision(config))
    model.to(where)
    first = windows[0]["input_ids"].unsqueeze(0).to(where)
    routers = _routers(model, parent, config, windows)
    with torch.no_grad():
        before = model(input_ids=first, use_cache=False).logits
        blocks = upcycle_model(model, config, routers)
        after = model(input_ids=first, use_cache=False).logits
    start = float((before - after).abs().max())
    del before, after
    with silent():
        trainer = UpcyclingTrainer(
            model, blocks, config, windows, partial / CHECKPOINTS, where.type
        )
        trainer.remove_callback(PrinterCallback)
        train(
            trainer,
            config,
            partial / HISTORY if progress is not None else None,
            progress or quiet,
            _measure(model, tokenizer, config, window),
        )
    model.eval()
    return model, blocks, start


def _measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: UpcycleConfig, window: int
) -> Measure | None:
    """The perplexity on the held-out text, if there is one."""
    if config.data.heldout is None:
        return None
    text, tokens = read_text(config.data.heldout), config.training.heldout_tokens
    windows = token_windows(tokenizer, text, window, tokens)

    def measure() -> float:
        totals = Totals()
        for said in answers(model, windows, config.training.batch):
            totals.add(said)
        return totals.perplexity

    return measure


def _routers(
    model: PreTrainedModel, parent: DenseModel, config: UpcycleConfig, windows: Windows
) -> dict[int, torch.Tensor]:
    chosen = config.chosen_layers(parent.layers)
    if config.router.init == "random":
        return random_routers(chosen, config.experts, parent.hidden, config.router.std, config.seed)
    sites = {site.layer: site for site in find_sites(model) if site.layer in chosen}
    rows = windows.tokens[:CLUSTER_WINDOWS].long().to(model.device)
    return clustered_routers(
        model,
        {layer: model.get_submodule(site.path) for layer, site in sites.items()},
        rows.split(config.training.batch),
        config.experts,
        config.seed,
    )


def _precision(config: UpcycleConfig) -> torch.dtype:
    """What is not trained is held in this."""
    return torch.bfloat16 if config.training.bf16 else torch.float32


def _values(packed: PackedCheckpoint) -> int:
    """Numbers that a packed checkpoint stores."""
    infos = packed.store.tensors.values()
    return sum(math.prod(info.shape) for info in infos if info.dtype.is_floating_point)


def _public(config: UpcycleConfig) -> dict[str, Any]:
    """The configuration as it travels: files by their names alone, not by paths of this machine."""
    told = config.model_dump(mode="json")
    data = told["data"]
    data["texts"] = [Path(text).name for text in data["texts"]]
    data["heldout"] = Path(data["heldout"]).name if data["heldout"] else None
    return told
