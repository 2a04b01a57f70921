"""One backward pass for each window: what errors in weights cost.

The gradients are of log p of labels that are drawn from the model itself. Those of the text's own
next tokens would give another matrix than the curvature of KL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ders_core.calibrate.choices import watched_choices
from ders_core.calibrate.costs import Costs
from ders_core.calibrate.gradient_observer import GradientObserver, Sums
from ders_core.calibrate.input_sums import MAX_WIDTH
from ders_core.calibrate.joint import Joint, JointTokens
from ders_core.calibrate.measure_others import OtherMeasure
from ders_core.calibrate.placement import Key
from ders_core.calibrate.projections import LocatedGroup, regions_of
from ders_core.calibrate.routers import chosen_windows, measure_routers
from ders_core.calibrate.swaps import Swaps
from ders_core.calibrate.weighted_sums import WeightedSums
from ders_core.compute.device import device_label
from ders_core.compute.progress import Meter
from ders_core.errors import DersError, EvaluationError
from ders_core.evaluate.forward import next_token_logits
from ders_core.hf.classes import words
from ders_core.pipeline.calibration import SIDES

SEED = 0
"""Of the labels that are drawn, and of signs."""


def tokens_read(windows: torch.Tensor) -> int:
    """How many tokens of `[n, window]` are passed on in `measure_gradients`."""
    return windows.numel() + chosen_windows(windows).numel()


def measure_gradients(
    model: PreTrainedModel,
    located: list[LocatedGroup],
    windows: torch.Tensor,
    meter: Meter,
    others: OtherMeasure | None = None,
    max_width: int = MAX_WIDTH,
    *,
    each_expert: bool = False,
) -> dict[str, torch.Tensor]:
    """The calibration file's tensors of the experts' gradients. Every token of `windows`
    `[n, window]` predicts one label. What tipped choices cost is among them if every layer's
    choices can be seen, and what errors cost that experts share if their tokens can be told.
    others: sums of other matrices, to which is added. max_width: of wider inputs the weighted
    moments are a diagonal. each_expert: those of each expert too.

    Raises EvaluationError if the model cannot be differentiated, does not predict tokens, or
    computes values that are not finite, and if the device's memory is too small.
    """
    others = others or OtherMeasure.nothing()
    regions = regions_of(located, others.tensors)
    draws = torch.Generator(model.device).manual_seed(SEED)
    try:
        weighted = _weighted_sums(located, max_width, each_expert)
        costs: dict[tuple[int, str], Costs] = {
            each.group.key: Costs.empty(
                each.group.key, each.weights, each.routed, len(windows), weighted[_side(each)]
            )
            for each in located
        }
        joints: dict[Key, Joint] = {
            each.group.key: Joint.empty(len(each.weights), each.routed, each.weights[0])
            for each in located
        }
        sums: dict[Any, Sums] = {**costs, **others.sums}
        swaps = Swaps()
        routers: dict[str, torch.Tensor] = {}
        with torch.enable_grad(), _differentiable(model):
            with watched_choices(model, located, swaps.computed):
                for number, rows in enumerate(windows.split(1)):
                    joint = JointTokens(joints)
                    observer = GradientObserver(regions, sums, number, joint)
                    with others.lookups():
                        _one_pass(model, rows.to(model.device), observer, draws, others)
                    joint.finish(rows.numel())
                    regions.forget_copies()
                    _check_reached(observer, costs)
                    meter.advance(rows.numel(), "measuring gradients")
            reached = {layer for (layer, _), each in costs.items() if each.calls}
            layers = swaps.tipping(len(windows), reached)
            some = chosen_windows(windows)
            if layers:
                routers = swaps.tensors(layers)
                routers |= measure_routers(
                    model, located, regions, some, layers, SEED, meter, others
                )
            else:
                meter.advance(some.numel(), "routers are not seen")
    except torch.OutOfMemoryError as error:
        raise EvaluationError(
            f"a window of {windows.shape[1]} tokens with its gradients does not fit into the "
            f"memory of {device_label(model.device)} besides the model; give a smaller window or "
            f"max_width, {'leave each_expert out, ' if each_expert else ''}or calibrate without "
            "gradients"
        ) from error
    moments = {
        f"{layer}.{side}.{kind}": tensor
        for (layer, side), summed in weighted.items()
        for kind, tensor in summed.tensors().items()
    }
    return (
        routers
        | moments
        | {
            f"{key[0]}.{key[1]}.{kind}": tensor
            for measured in (costs, joints)
            for key, summed in measured.items()
            for kind, tensor in summed.tensors(windows.numel()).items()
        }
    )


def _side(located: LocatedGroup) -> tuple[int, str]:
    """Layer and side: groups with the same one have the same inputs."""
    return located.group.layer, SIDES[located.group.projection]


def _weighted_sums(
    located: list[LocatedGroup], max_width: int, each_expert: bool
) -> dict[tuple[int, str], WeightedSums]:
    """Of each layer and side."""
    empty = WeightedSums.apart if each_expert else WeightedSums.together
    sums: dict[tuple[int, str], WeightedSums] = {}
    for each in located:
        if _side(each) not in sums:
            weight = each.weights[0]
            sums[_side(each)] = empty(each.routed, weight.shape[1], max_width, weight.device)
    return sums


def _one_pass(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    observer: GradientObserver,
    draws: torch.Generator,
    others: OtherMeasure,
) -> None:
    """Forward and backward of one window `[1, window]`."""
    with observer:
        logits = next_token_logits(model, tokens)
        if not logits.requires_grad:
            raise EvaluationError(
                f"{type(model).__name__} computes its answers without gradients; calibrate "
                "without gradients"
            )
        gradient = _sampled_gradient(model, logits.detach(), draws)
        others.add_inputs()
        observer.is_backward = True
        try:
            logits.backward(gradient)
        except (DersError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model of any family may do what has no gradient
            raise EvaluationError(
                f"{type(model).__name__} of transformers {transformers.__version__} cannot be "
                f"differentiated: {words(error)}; calibrate without gradients"
            ) from error


def _sampled_gradient(
    model: PreTrainedModel, logits: torch.Tensor, draws: torch.Generator
) -> torch.Tensor:
    """∂ Σ log p(label) / ∂ logits `[1, tokens, vocabulary]`, each label drawn from its p."""
    probabilities = logits[0].float().softmax(-1)
    if not bool(torch.isfinite(probabilities).all()):
        raise EvaluationError(
            f"{type(model).__name__} computes values that are not finite; its weights are damaged "
            "or too large for their dtype"
        )
    labels = torch.multinomial(probabilities, 1, generator=draws)
    gradient = probabilities.neg_()
    gradient.scatter_add_(1, labels, torch.ones_like(labels, dtype=gradient.dtype))
    return gradient[None].to(logits.dtype)


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Let gradients run through all layers, from the embeddings on, and into no weight."""
    model.requires_grad_(False)
    try:
        first = model.get_input_embeddings()
    except NotImplementedError as error:
        raise EvaluationError(
            f"{type(model).__name__} has no input embeddings where gradients could end; calibrate "
            "without gradients"
        ) from error

    def begin(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if output.requires_grad:  # its lookup is observed
            return output
        return output.detach().requires_grad_().clone()  # a leaf may not be written to, a copy may

    alike = {module for module in model.modules() if _has_weight_of(module, first)}
    hooks = [module.register_forward_hook(begin) for module in {first, *alike}]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _has_weight_of(module: torch.nn.Module, first: torch.nn.Module) -> bool:
    """Whether it looks up the same embeddings, as an encoder and a decoder may do."""
    return isinstance(module, torch.nn.Embedding) and module.weight is getattr(
        first, "weight", None
    )


def _check_reached(observer: GradientObserver, costs: Mapping[Any, Costs]) -> None:
    """Raise EvaluationError if no gradient comes back to experts that have had inputs."""
    for key in observer.multiplied:
        if key in costs and not costs[key].calls:
            raise EvaluationError(
                f"layer {key[0]}, {key[1]}: no gradient comes back to its experts, because the "
                "model computes them without gradients; calibrate without gradients"
            )
