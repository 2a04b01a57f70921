"""Where a router chooses experts: seen, and changed, at the call that picks the largest scores.

Every router picks by `topk`, or by `argmax` if it picks one. What its scores are, and what is made
of them afterwards, is the model's own matter: there is no code for single families.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ders_core.calibrate.projections import LocatedGroup
from ders_core.errors import DersError

_TOPK = (torch.topk, torch.Tensor.topk)
_ARGMAX = (torch.argmax, torch.Tensor.argmax)


@dataclass(frozen=True)
class Choice:
    """The scores of a layer's experts `[..., experts]`, of which the `count` largest are chosen."""

    scores: torch.Tensor
    count: int

    def margins(self) -> torch.Tensor:
        """By how much the last expert that is chosen is ahead of the first that is not: `[tokens]`,
        0 or more, differentiable as the scores are."""
        best = self.scores.sort(-1, descending=True).values.flatten(0, -2)  # `topk` is watched
        return best[:, self.count - 1] - best[:, self.count]

    def runners_up(self) -> torch.Tensor:
        """The choice with the first expert that was not chosen in the place of the last that was:
        int64 `[..., count]`."""
        best = self.scores.detach().argsort(-1, descending=True)
        return torch.cat([best[..., : self.count - 1], best[..., self.count : self.count + 1]], -1)


@dataclass(frozen=True)
class Block:
    """A call of the smallest module in which a layer's experts lie and are chosen. choice: the last
    that was made in it. picks: how many were."""

    layer: int
    choice: Choice
    picks: int
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    _watch: _Watch

    @property
    def hidden(self) -> torch.Tensor | None:
        """Its output of hidden states `[..., d]`; None if it has none."""
        return _hidden_states(self.output)

    def leads(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The margins, and the norms of their gradients after each token's input, `[tokens]`; the
        first are differentiable. Their ratio is how far an input is from where its choice tips.
        None if the margins do not depend on one input for each token."""
        x, margins = _hidden_states((*self.args, *self.kwargs.values())), self.choice.margins()
        if x is None or not (x.requires_grad and margins.requires_grad):
            return None
        if x[..., 0].numel() != len(margins):
            return None
        (slope,) = torch.autograd.grad(margins.sum(), x, retain_graph=True, allow_unused=True)
        return None if slope is None else (margins, slope.flatten(0, -2).float().norm(dim=-1))

    def with_runners_up(self) -> torch.Tensor | None:
        """What `hidden` would be if every token had the first expert that it was not given in the
        place of the last that it was; None if the model cannot compute that."""
        with self._watch.taking_runners_up(self):
            try:
                return _hidden_states(self.module.forward(*self.args, **self.kwargs))
            except (DersError, torch.OutOfMemoryError):
                raise
            except Exception:  # a model of any family may rely on its own choice in any way
                return None


def _hidden_states(output: Any) -> torch.Tensor | None:
    values = output if isinstance(output, tuple | list) else (output,)
    return next(
        (
            value
            for value in values
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
        ),
        None,
    )


@contextmanager
def watched_choices(
    model: torch.nn.Module, located: Iterable[LocatedGroup], computed: Callable[[Block], None]
) -> Iterator[None]:
    """Call `computed` after each block of experts, in forward passes of the model meanwhile."""
    watch = _Watch(computed)
    experts = {}
    handles = []
    for layer, (modules, count) in _owners(model, located).items():
        experts[layer] = count
        for module in modules:
            enter = partial(watch.enter, layer)
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(watch.leave, with_kwargs=True))
    try:
        with _Picks(watch, experts):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _owners(
    model: torch.nn.Module, located: Iterable[LocatedGroup]
) -> dict[int, tuple[list[torch.nn.Module], int]]:
    """Layer -> the modules that hold all its routed experts' weights and those of no other layer,
    and the number of these experts."""
    starts: dict[int, set[int]] = {}
    counts: dict[int, int] = {}
    for each in located:
        layer, counts[each.group.layer] = each.group.layer, each.routed
        starts.setdefault(layer, set()).update(
            matrix.data_ptr() for matrix in each.matrices[: each.routed]
        )
    layer_of = {start: layer for layer, found in starts.items() for start in found}
    addresses = sorted(layer_of)
    owners: dict[int, tuple[list[torch.nn.Module], int]] = {
        layer: ([], count) for layer, count in counts.items()
    }
    for module in model.modules():
        held: set[int] = set()
        for parameter in module.parameters():
            begin = parameter.data_ptr()
            end = begin + parameter.numel() * parameter.itemsize
            held.update(addresses[bisect_left(addresses, begin) : bisect_left(addresses, end)])
        layers = {layer_of[start] for start in held}
        if len(layers) == 1 and held == starts[min(layers)]:
            owners[min(layers)][0].append(module)
    return owners


@dataclass
class _Frame:
    """A module that is computing. picks: how many choices were made in it. choice: the last."""

    layer: int
    picks: int = 0
    choice: Choice | None = None


@dataclass
class _Watch:
    """Knows which modules with experts are computing, the innermost last. repeated: a block that
    computes once more, to take the runners-up of its last choice."""

    computed: Callable[[Block], None]
    stack: list[_Frame] = field(default_factory=list)
    repeated: Block | None = None

    def enter(self, layer: int, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.stack.append(_Frame(layer))

    def leave(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
    ) -> None:
        frame = self.stack.pop()
        if frame.choice is None or self.repeated is not None:
            return
        for outer in self.stack:  # what they have chosen is something else, such as keys to attend
            outer.choice = None
        self.computed(
            Block(frame.layer, frame.choice, frame.picks, module, args, kwargs, output, self)
        )

    def pick(self, choice: Choice) -> torch.Tensor | None:
        frame = self.stack[-1]
        frame.picks, frame.choice = frame.picks + 1, choice
        if self.repeated is not None and frame.picks == self.repeated.picks:
            return choice.runners_up()
        return None

    @contextmanager
    def taking_runners_up(self, block: Block) -> Iterator[None]:
        depth = len(self.stack)
        self.stack.append(_Frame(block.layer))
        self.repeated = block
        try:
            yield
        finally:
            self.repeated = None
            del self.stack[depth:]


class _Picks(TorchFunctionMode):
    """Sees every `topk` and `argmax` over as many scores as the layer has experts."""

    def __init__(self, watch: _Watch, experts: Mapping[int, int]) -> None:
        super().__init__()
        self._watch, self._experts = watch, experts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _TOPK and self._watch.stack:
            return self._topk(func, *args, **kwargs)
        if func in _ARGMAX and self._watch.stack:
            return self._argmax(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _topk(
        self,
        func: Any,
        input: torch.Tensor,
        k: int,
        dim: int = -1,
        largest: bool = True,
        sorted: bool = True,
        **more: Any,
    ) -> Any:
        other = self._pick(input, k, dim) if largest and not more else None
        if other is not None:
            return torch.return_types.topk((input.gather(-1, other), other))
        return func(input, k, dim, largest, sorted, **more)

    def _argmax(
        self, func: Any, input: torch.Tensor, dim: int | None = None, keepdim: bool = False
    ) -> torch.Tensor:
        other = None if dim is None else self._pick(input, 1, dim)
        if other is not None:
            return other if keepdim else other[..., 0]
        best: torch.Tensor = func(input, dim, keepdim)
        return best

    def _pick(self, scores: torch.Tensor, count: int, dim: int) -> torch.Tensor | None:
        last = scores.dim() > 1 and dim % scores.dim() == scores.dim() - 1
        experts = self._experts[self._watch.stack[-1].layer]
        if not last or scores.shape[-1] != experts or not count < experts:
            return None
        return self._watch.pick(Choice(scores, count))
