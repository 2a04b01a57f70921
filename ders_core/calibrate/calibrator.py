"""Run a model over a text with transformers, observe its experts' inputs, write their moments; and
if it is asked for, what errors in their weights cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ders_core.calibrate.gradients import measure_gradients, tokens_read
from ders_core.calibrate.input_sums import MAX_WIDTH
from ders_core.calibrate.locate import WeightLocation, locate_weights
from ders_core.calibrate.measure_others import OtherMeasure
from ders_core.calibrate.observer import InputObserver, Sums
from ders_core.calibrate.others import locate_others, other_bytes
from ders_core.calibrate.projections import locate_projections
from ders_core.checkpoint import Checkpoint
from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.precision import dtype_label
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.forward import loaded, run
from ders_core.evaluate.windows import (
    check_sizes,
    check_vocabulary,
    fitting_window,
    token_windows,
)
from ders_core.files.address import as_local
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.output import new_file, new_target
from ders_core.files.texts import Texts, as_paths
from ders_core.hf import as_stored, describe, load_tokenizer, shared_dtype
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import IN, MID, SIDES, Calibration, write_calibration
from ders_core.pipeline.others import OtherNotes
from ders_core.pipeline.seen_text import SeenText
from ders_core.pipeline.sensitivity import ROWS
from ders_core.units import bytes_text

ROOM_FOR_EACH = 1 << 30
"""Bytes that the moments of experts together may take, for a tuning to keep each one's own."""


@unchanged_inputs()
def calibrate(
    model: str | Path,
    out: str | Path,
    *,
    text: Texts,
    device: str = "cpu",
    max_tokens: int = 8192,
    window: int = 512,
    batch: int = 8,
    dtype: torch.dtype | None = None,
    max_width: int = MAX_WIDTH,
    gradients: bool = False,
    others: bool = False,
    each_expert: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> Calibration:
    """Run a checkpoint over a text and write its calibration to the new file `out`.

    model: a directory, packed or not. text: one or more files or directories of UTF-8 text or
    `.jsonl` (see `ders_core.files.texts`). window: tokens of context, not overlapping. batch:
    windows at once. dtype: of the computation; by default the checkpoint's, but float32 where the
    device has no instructions for it (see `ders_core.compute.precision`). trust_remote_code: run
    code that comes with the model. An encoder and a decoder both read the text. Besides the model,
    the device holds 4·in² bytes for each of a layer's two inputs; one wider than `max_width` keeps
    the diagonal alone, 4·in bytes. gradients: measure also how much an error in each weight costs
    (`Calibration.curvatures`, `shrinkage` and `tipping`), and the inputs' moments weighted by the
    gradients after them, as many bytes again, by a backward pass of every window alone,
    and of some windows once more where the routers' choices can be seen; the device holds a
    window's activations and, in float32, the mean of each group. others: measure also what an error
    in each matrix costs that holds no routed expert (`Calibration.others`), and its inputs' second
    moments, plain and weighted, 8·in² bytes for each input, once for matrices that share it;
    gradients are measured then too. each_expert: keep the weighted moments of each expert's inputs
    too, as many times the bytes as a layer has experts; with gradients. progress counts tokens,
    with gradients those of all passes. The checkpoint is hashed at the end.
    Raises CheckpointError if it, or a text, is written meanwhile; OutputError if `out` exists or
    cannot be written; EvaluationError if the text is too short, the model does not run on text,
    values are not finite, or experts' inputs cannot be identified; with gradients, if it cannot be
    differentiated.
    """
    target = new_target(out)
    where = resolve_device(device)
    check_sizes(window, max_tokens, batch)
    checkpoint = open_checkpoint(as_local(model))
    if checkpoint.packed_bytes is not None and checkpoint.scheme is not None:
        # transformers gets numbers that are not rounded to codes yet, so no weight would match
        raise EvaluationError(
            f"{checkpoint.path} is packed and stands for {checkpoint.scheme.name} codes, which "
            "transformers does not run; calibrate the output of `ders synthesize`"
        )
    facts = describe(model, trust_remote_code=trust_remote_code)
    window = fitting_window(window, [facts.positions])
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    windows = token_windows(tokenizer, read_text(text, tokenizer), window, max_tokens)
    check_vocabulary(windows, facts.vocabulary, tokenizer, checkpoint.path)
    if dtype is None:
        dtype = shared_dtype([facts], where)
    tokens = windows.numel()
    gradients = gradients or others or each_expert
    more = tokens_read(windows) if gradients else 0
    meter = Meter(tokens + more, progress)
    needs = _moment_bytes(checkpoint, max_width, gradients, each_expert)
    if others:
        needs += other_bytes(checkpoint, max_width)
    with new_file(target, needs=needs) as aside:
        meter.report("loading the model")
        # weights are found by their values
        with as_stored(), loaded(model, where.type, dtype, trust_remote_code) as network:
            network.set_experts_implementation("eager")  # expert after expert, by plain products
            locations = locate_weights(network, checkpoint)
            costs: Mapping[str, torch.Tensor] = {}
            of_others: Mapping[str, torch.Tensor] = {}
            notes: OtherNotes | None = None
            if gradients:  # first, because it is what a model may not be able to do
                held = {location.layer for location in locations.values()}
                located = locate_projections(network, checkpoint, held)
                measure = OtherMeasure.nothing()
                if others:
                    room = bytes_text(other_bytes(checkpoint, max_width))
                    meter.report(f"finding other matrices, whose moments take up to {room}")
                    found = locate_others(network, checkpoint, located)
                    measure = OtherMeasure.of(network, found, max_width)
                costs = measure_gradients(
                    network, located, windows, meter, measure, max_width, each_expert=each_expert
                )
                if others:
                    of_others, notes = measure.tensors_of_file(tokens)
            sums = _measure(network, checkpoint, locations, windows, batch, max_width, meter)
            tensors = _tensors(checkpoint, sums, tokens)
            tensors |= _of_layers(tensors, costs) | dict(of_others)
            computed = dtype_label(network.dtype)
        store = checkpoint.store
        meter.report("hashing the checkpoint, to know it again")
        content = store.content(lambda nbytes, message: meter.report(message))
        write_calibration(
            aside,
            checkpoint.identity,
            tokens,
            tensors,
            content,
            store.version,
            computed,
            [path.resolve().name for path in as_paths(text)],
            notes,
            SeenText.of(windows),
        )
    return Calibration.open(target)


def has_room_for_each(checkpoint: Checkpoint) -> bool:
    """Whether a tuning keeps the moments of each expert's own inputs: the moments of experts, with
    those of all together, take ROOM_FOR_EACH at most."""
    return _moment_bytes(checkpoint, MAX_WIDTH, True, True) <= ROOM_FOR_EACH


def _moment_bytes(
    checkpoint: Checkpoint, max_width: int, gradients: bool, each_expert: bool
) -> int:
    """Bytes of the second moments of all layers in the file."""
    sides = {(group.layer, SIDES[group.projection]): group.shape for group in checkpoint.groups()}
    return sum(
        4 * width * (width if width <= max_width else 1) * (1 + gradients + experts * each_expert)
        for experts, _, width in sides.values()
    )


@torch.no_grad()  # and not inference_mode, in which linear layers do not come down to products
def _measure(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    locations: dict[int, WeightLocation],
    windows: torch.Tensor,
    batch: int,
    max_width: int,
    meter: Meter,
) -> dict[tuple[int, str], Sums]:
    """(layer, side) -> sums over `windows` `[n, window]`."""
    held = {location.layer for location in locations.values()}
    try:
        sums = {
            (group.layer, SIDES[group.projection]): Sums.empty(
                group.shape[0], group.shape[2], max_width, model.device
            )
            for group in checkpoint.groups()
            if group.layer in held
        }
        for rows in windows.split(batch):
            with InputObserver(locations, sums):
                run(model, rows.to(model.device))
            meter.advance(rows.numel(), "calibrating")
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"{batch} windows of {windows.shape[1]} tokens and the moments do not fit into the "
            f"memory of {device_label(model.device)} besides the model; give a smaller batch, "
            "window or max_width"
        ) from error
    return sums


def _tensors(
    checkpoint: Checkpoint, sums: dict[tuple[int, str], Sums], tokens: int
) -> dict[str, torch.Tensor]:
    """The file's tensors. Stacks that no token reached, such as a vision tower, are left out."""
    stacks = {group.layer: group.block.stack for group in checkpoint.groups()}
    seen = {layer for (layer, _), side_sums in sums.items() if bool(side_sums.counts.any())}
    reached = {0} | {stacks[layer] for layer in seen}
    tensors: dict[str, torch.Tensor] = {}
    for layer in dict.fromkeys(layer for layer, _ in sums):
        if stacks[layer] not in reached:
            continue
        sides = {side: sums[layer, side] for side in (IN, MID)}
        _check_counts(checkpoint, layer, sides, tokens)
        tensors[f"{layer}.routed"] = sides[IN].counts.cpu()
        for side, side_sums in sides.items():
            tensors[f"{layer}.{side}.moments"] = mean = side_sums.mean()
            if not bool(torch.isfinite(mean).all()):
                raise EvaluationError(
                    f"layer {layer}: {checkpoint.path} computes values that are not finite; its "
                    "weights are damaged or too large for their dtype"
                )
    return tensors


def _of_layers(
    measured: Mapping[str, torch.Tensor], costs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of gradients of the layers whose moments are `measured`."""
    kept = {
        name: tensor
        for name, tensor in costs.items()
        if f"{name.partition('.')[0]}.routed" in measured
    }
    for name, tensor in kept.items():
        *place, kind = name.split(".")
        where = f"layer {', '.join(place)}"
        if not bool(torch.isfinite(tensor).all()):
            raise EvaluationError(
                f"{where}: gradients are not finite; compute in float32, or calibrate without "
                "gradients"
            )
        if kind == ROWS and not bool(tensor.any()):
            raise EvaluationError(
                f"{where}: tokens went into its experts, and no gradient came back but zero; "
                "compute in float32, or calibrate without gradients"
            )
    return kept


def _check_counts(checkpoint: Checkpoint, layer: int, sides: dict[str, Sums], tokens: int) -> None:
    """Raise EvaluationError unless the router can have chosen the experts of a layer this often."""
    routed, ended = (sides[side].counts.cpu() for side in (IN, MID))
    top_k = checkpoint.top_k
    if not bool(routed.any()):
        raise EvaluationError(
            f"layer {layer}: no token was seen on its way into an expert; the model does not "
            "multiply with its experts' weights as they are, so it cannot be calibrated"
        )
    if not torch.equal(routed, ended):
        raise EvaluationError(
            f"layer {layer}: {int(routed.sum())} inputs went into experts, only "
            f"{int(ended.sum())} reached the down projection; the model does not multiply with its "
            "experts' weights as they are, so it cannot be calibrated"
        )
    if int(routed.max()) > tokens:
        expert = int(routed.argmax())
        raise EvaluationError(
            f"layer {layer}: expert {expert} received {int(routed.max())} inputs for {tokens} "
            "tokens; the model does not run each token once, so its use cannot be measured"
        )
    if top_k is not None and top_k < len(routed) and int(routed.min()) == tokens:
        raise EvaluationError(
            f"layer {layer}: every expert received every token, though each has {top_k}; the "
            "model gives experts tokens that the router did not choose them for, so their use "
            "cannot be measured"
        )
