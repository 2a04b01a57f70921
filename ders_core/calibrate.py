"""Calibrate: second moments of what experts' weights are multiplied with, and their use.

No family has code of its own here. The model runs as transformers runs it, and every matrix product
passes a watch: where its weight lies in memory tells which expert of which layer it is, so its
other operand is that expert's input. Which memory is whose is told by comparing values with the
checkpoint's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.device import device_label, resolve_device
from ders_core.errors import DersError, EvaluationError
from ders_core.evaluate.forward import loaded
from ders_core.evaluate.windows import read_text, token_windows
from ders_core.hf import load_tokenizer
from ders_core.moments import IN, MID, SIDES, Calibration, new_file, write_calibration
from ders_core.progress import Progress, quiet

ROWS = 4096
"""Tokens whose xᵀx is added at once: their float32 rows are what takes memory."""

_aten = torch.ops.aten
PRODUCTS: dict[Any, int] = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.mv.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
    _aten.addmv.default: 1,
}
"""The products that linear layers, matmul and einsum come down to -> the place of the first factor
among the arguments; the second factor follows."""

COPIES = (_aten._to_copy.default, _aten.clone.default)
"""What a model makes of a weight that it wants in another dtype."""


@dataclass(frozen=True)
class _Place:
    """The weights of one expert in the model's memory. end: address after the last of them."""

    layer: int
    side: str
    expert: int
    end: int


@dataclass(frozen=True)
class _Probe:
    """Rows of a group on disk by which it is known: of the first and the last expert, the first and
    the last. rows: (expert, row) -> `[in]`."""

    group: ExpertGroup
    rows: dict[tuple[int, int], torch.Tensor]

    @classmethod
    def of(cls, group: ExpertGroup) -> _Probe:
        experts, out, _ = group.shape
        places = [(expert, row) for expert in {0, experts - 1} for row in {0, out - 1}]
        rows = {(k, row): group.read(k, slice(row, row + 1))[0] for k, row in places}
        return cls(group, rows)

    def finds(self, bank: tuple[torch.Tensor, ...]) -> bool:
        """Whether these matrices, one for each expert, are the group's weights, alone or beside
        another projection's, in any arrangement."""
        experts, out, width = self.group.shape
        if len(bank) < experts:
            return False
        views = [list(_arrangements(weight, out, width)) for weight in (bank[0], bank[experts - 1])]
        return any(
            all(
                self._same((first, last)[k > 0][row], numbers)
                for (k, row), numbers in self.rows.items()
            )
            for first, last in zip(*views, strict=False)
        )

    def _same(self, mine: torch.Tensor, own: torch.Tensor) -> bool:
        """Whether two rows hold the same numbers, but for the rounding of a dequantization."""
        mine, own = mine.cpu(), own.to(mine.dtype)
        if self.group.is_quantized:
            return torch.allclose(mine, own, rtol=2**-6, atol=0)
        return torch.equal(mine, own)


def _arrangements(weight: torch.Tensor, out: int, width: int) -> Iterator[torch.Tensor]:
    """Every `[out, in]` that a matrix may hold: itself or transposed, whole or one of two or three
    projections, one after another or taking turns."""
    for turned in (weight, weight.T):
        parts, rest = divmod(turned.shape[0], out)
        if turned.shape[1] == width and not rest and 1 <= parts <= 3:
            for part in range(parts):
                yield turned[part * out : (part + 1) * out]
                if parts > 1:
                    yield turned[part::parts]


def _banks(model: PreTrainedModel, experts: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """What may be the weights of so many experts, a matrix for each, in the order of layers."""
    numbered: dict[str, dict[int, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.dim() == 3 and len(weight) >= experts:  # more where some pass their input on
            yield tuple(weight)
        if weight.dim() != 2:
            continue
        if len(weight) % experts == 0 and weight.is_contiguous():  # stacked along the rows
            yield tuple(weight.view(experts, -1, weight.shape[1]))
        for number in re.finditer(r"(?<=[._])\d+(?=\.)", name):
            alike = f"{name[: number.start()]}*{name[number.end() :]}"
            numbered.setdefault(alike, {})[int(number[0])] = weight
    for weights in numbered.values():
        if all(expert in weights for expert in range(experts)):
            yield tuple(weights[expert] for expert in range(experts))


def _places(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[int, _Place]:
    """Address of an expert's first weight -> whose it is.

    gate and up are multiplied with the same, so one of them is watched: the first that a layer has.
    Layers behind a stack's last that the model holds (those for predicting several tokens, which
    transformers leaves on disk), and stacks of which it holds none, are left out.
    Raises EvaluationError for any other layer whose weights are not in the model as on disk.
    """
    groups = {(group.layer, SIDES[group.projection]): group for group in checkpoint.groups()[::-1]}
    banks = {count: list(_banks(model, count)) for count in {g.shape[0] for g in groups.values()}}
    places: dict[int, _Place] = {}
    absent: list[ExpertGroup] = []
    for (layer, side), group in sorted(groups.items(), key=lambda item: item[0]):
        probe, own = _Probe.of(group), banks[group.shape[0]]
        found = next((n for n, bank in enumerate(own) if probe.finds(bank)), None)
        if found is None:
            absent.append(group)
            continue
        for expert, weight in enumerate(own.pop(found)[: group.shape[0]]):
            end = weight.data_ptr() + weight.numel() * weight.itemsize
            places[weight.data_ptr()] = _Place(layer, side, expert, end)
    stacks = {group.layer: group.block.stack for group in groups.values()}
    last = {0: max(stacks)} | {stacks[own.layer]: own.layer for own in places.values()}
    for group in absent:
        if group.layer <= last.get(group.block.stack, -1):
            raise EvaluationError(
                f"layer {group.layer}, {group.projection}: the model that transformers makes of "
                f"{checkpoint.path} holds no weights equal to its experts', so what they are "
                "multiplied with cannot be told; another dtype, or cpu, may keep them as they are"
            )
    return places


@dataclass
class _Sums:
    """Of one side of a layer. total: Σ x xᵀ `[in, in]` float32, or its diagonal. counts: tokens of
    each expert, int64."""

    total: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def empty(cls, experts: int, width: int, max_width: int, device: torch.device) -> _Sums:
        shape = (width, width) if width <= max_width else (width,)
        counts = torch.zeros(experts, dtype=torch.int64, device=device)
        return cls(torch.zeros(shape, dtype=torch.float32, device=device), counts)

    def add(self, expert: int, x: torch.Tensor, tokens: torch.Tensor) -> None:
        """x: `[n, in]`. tokens: bool `[n]`, which of the rows count."""
        self.counts[expert] += tokens.sum()
        for rows, counted in zip(x.split(ROWS), tokens.split(ROWS), strict=True):
            numbers = rows.float() * counted[:, None]
            if self.total.dim() == 2:
                self.total.addmm_(numbers.T, numbers)
            else:
                self.total += numbers.square().sum(0)

    def mean(self) -> torch.Tensor:
        """E[x xᵀ], float32, exactly symmetric."""
        mean = self.total.cpu().double() / int(self.counts.sum())
        return ((mean + mean.T) / 2 if mean.dim() == 2 else mean).float()


@dataclass(eq=False)
class _Watch(TorchDispatchMode):
    """Looks at every matrix product while it is entered, and adds up experts' inputs."""

    places: dict[int, _Place]
    sums: dict[tuple[int, str], _Sums]
    rows: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(layer, expert) -> bool `[n]`, which of its last input's rows are tokens."""
    copies: dict[str, tuple[torch.Tensor, dict[int, _Place]]] = field(default_factory=dict)
    """side -> the last copy of weights, kept so that its memory stays its own, and its places."""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        first = PRODUCTS.get(func)
        if first is not None:
            self._look(*args[first : first + 2])
        made = func(*args, **(kwargs or {}))
        if func in COPIES and args[0].data_ptr() in self.places:
            self._follow(args[0], made)
        return made

    def _follow(self, weight: torch.Tensor, copy: torch.Tensor) -> None:
        """A copy of one expert's weights, or of several experts' `[experts, ...]`."""
        several = weight.dim() == 3
        pairs = zip(weight, copy, strict=True) if several else [(weight, copy)]
        places = {
            new.data_ptr(): replace(place, end=new.data_ptr() + new.numel() * new.itemsize)
            for old, new in pairs
            for place in [self.places.get(old.data_ptr())]
            if place is not None
        }
        self.copies[next(iter(places.values())).side] = copy, places

    def _place(self, weight: torch.Tensor) -> _Place | None:
        address = weight.data_ptr()
        known = (self.places, *(places for _, places in self.copies.values()))
        return next((places[address] for places in known if address in places), None)

    def _look(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """One product, or a batch of them: `[n, in]` times `[in, out]`, or both turned."""
        if right.dim() == 1:  # a matrix times a vector
            right = right[:, None]
        if left.dim() == 2:
            left, right = left[None], right[None]
        if self._place(left[0]) is None and self._place(right[0]) is None:
            return
        for one, other in zip(left, right, strict=True):
            for weight, x in ((other, one), (one, other.T)):
                place = self._place(weight)
                if place is not None:
                    self._add(place, weight, x)

    def _add(self, place: _Place, weight: torch.Tensor, x: torch.Tensor) -> None:
        """A row of nothing but zeros is no token: an expert's place that none has taken."""
        reach = sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
        if weight.data_ptr() + reach * weight.itemsize >= place.end:
            raise EvaluationError(
                f"layer {place.layer}: the model multiplies every token with all experts at once, "
                "so which of them it chose cannot be told"
            )
        key = place.layer, place.expert
        if place.side == IN:
            self.rows[key] = (x != 0).any(-1)
        tokens = self.rows.get(key)
        if tokens is None or len(tokens) != len(x):
            tokens = (x != 0).any(-1)
        self.sums[place.layer, place.side].add(place.expert, x, tokens)


def calibrate(
    model: str | Path,
    out: str | Path,
    *,
    text: str | Path,
    device: str = "cpu",
    max_tokens: int = 8192,
    window: int = 512,
    batch: int = 8,
    dtype: torch.dtype | None = None,
    max_width: int = 8192,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> Calibration:
    """Run a checkpoint over a text and write its calibration to the new file `out`.

    model: an original directory. text: path of a UTF-8 file. window: tokens of context, not
    overlapping. batch: windows at once. dtype: of the computation, by default the checkpoint's. An
    encoder and a decoder both read the text. Beside the model, the device holds 4·in² bytes for
    each of a layer's two inputs; one wider than `max_width` keeps the diagonal alone, 4·in bytes.
    progress counts tokens.
    Raises OutputError if `out` exists or cannot be written; EvaluationError if the text is too
    short, values are not finite, or experts' inputs cannot be told.
    """
    where, target = resolve_device(device), Path(out).expanduser()
    sizes = {"window": (window, 2), "max_tokens": (max_tokens, 1), "batch": (batch, 1)}
    for name, (value, least) in sizes.items():
        if value < least:
            raise EvaluationError(f"{name} is {value}; give at least {least}")
    checkpoint = Checkpoint(model)
    limit = checkpoint.config.get("max_position_embeddings")
    window = min(window, limit) if isinstance(limit, int) and limit > 1 else window
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    windows = token_windows(tokenizer, read_text(text), window, max_tokens)
    total = windows.numel()
    with new_file(target) as aside:
        progress(0, total, "loading the model")
        with loaded(model, where.type, dtype, trust_remote_code) as network:
            sums = _measure(network, checkpoint, windows, batch, max_width, progress)
            tensors = _tensors(checkpoint, sums, total)
        write_calibration(aside, checkpoint.identity, total, tensors)
    return Calibration.open(target)


@torch.no_grad()  # and not inference_mode, in which linear layers do not come down to products
def _measure(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    windows: torch.Tensor,
    batch: int,
    max_width: int,
    progress: Progress,
) -> dict[tuple[int, str], _Sums]:
    """(layer, side) -> sums over `windows` `[n, window]`."""
    model.set_experts_implementation("eager")  # expert after expert, by plain products
    places, done = _places(model, checkpoint), 0
    held = {place.layer for place in places.values()}
    try:
        sums = {
            (group.layer, SIDES[group.projection]): _Sums.empty(
                group.shape[0], group.shape[2], max_width, model.device
            )
            for group in checkpoint.groups()
            if group.layer in held
        }
        for rows in windows.split(batch):
            with _Watch(places, sums):
                _run(model, rows.to(model.device))
            done += rows.numel()
            progress(done, windows.numel(), "calibrating")
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"{batch} windows of {windows.shape[1]} tokens and the moments do not fit into the "
            f"memory of {device_label(model.device)} beside the model; give a smaller batch, "
            "window or max_width"
        ) from error
    return sums


def _run(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """One forward pass over `[batch, window]`."""
    inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    try:
        model(**inputs)
    except (DersError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model makes of text alone
        told = " ".join(str(error).split()) or type(error).__name__
        raise EvaluationError(
            f"{model.config.name_or_path or 'the model'} cannot be run on text by transformers: "
            f"{told[:300]}"
        ) from error


def _tensors(
    checkpoint: Checkpoint, sums: dict[tuple[int, str], _Sums], tokens: int
) -> dict[str, torch.Tensor]:
    """What the file holds. A stack that no token reached, such as a vision tower, is left out."""
    stacks = {group.layer: group.block.stack for group in checkpoint.groups()}
    seen = {layer for (layer, _), own in sums.items() if bool(own.counts.any())}
    reached = {0} | {stacks[layer] for layer in seen}
    tensors: dict[str, torch.Tensor] = {}
    for layer in dict.fromkeys(layer for layer, _ in sums):
        if stacks[layer] not in reached:
            continue
        sides = {side: sums[layer, side] for side in (IN, MID)}
        _check_counts(checkpoint, layer, sides, tokens)
        tensors[f"{layer}.routed"] = sides[IN].counts.cpu()
        for side, own in sides.items():
            tensors[f"{layer}.{side}.moments"] = mean = own.mean()
            if not bool(torch.isfinite(mean).all()):
                raise EvaluationError(
                    f"layer {layer}: {checkpoint.path} computes values that are not finite; its "
                    "weights are damaged or too large for their dtype"
                )
    return tensors


def _check_counts(checkpoint: Checkpoint, layer: int, sides: dict[str, _Sums], tokens: int) -> None:
    """Raise EvaluationError unless the experts of a layer can have been chosen so often."""
    routed, ended = (sides[side].counts.cpu() for side in (IN, MID))
    top_k = checkpoint.top_k
    if not bool(routed.any()):
        raise EvaluationError(
            f"layer {layer}: no token was seen on its way into an expert; the model does not "
            "multiply with its experts' weights as they are, so it cannot be calibrated"
        )
    if not torch.equal(routed, ended):
        raise EvaluationError(
            f"layer {layer}: {int(routed.sum())} inputs went into experts, {int(ended.sum())} "
            "came as far as down; the model does not multiply with its experts' weights as they "
            "are, so it cannot be calibrated"
        )
    if int(routed.max()) > tokens:
        expert = int(routed.argmax())
        raise EvaluationError(
            f"layer {layer}: expert {expert} was given {int(routed.max())} inputs for {tokens} "
            "tokens; the model does not run each token once, so its use cannot be told"
        )
    if top_k is not None and top_k < len(routed) and int(routed.min()) == tokens:
        raise EvaluationError(
            f"layer {layer}: every expert was given every token, though each has {top_k}; the "
            "model does not keep from experts what they were not chosen for, so their use cannot "
            "be told"
        )
