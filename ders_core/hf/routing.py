"""Which experts a model gives its tokens to, seen at the modules that hold the experts.

The scores of a router do not tell: models add corrections to them, choose within groups, or drop
tokens that an expert has no room for. So the choice is read where it takes effect:

- a module that holds all experts is called with their numbers `[tokens, k]`, or with a mask;
- or with one row for each pair of an expert and a token, zero if it was not chosen (Llama 4);
- or with rows that are sorted by expert (JetMoE), and an expert that is a module of its own with
  its rows. These are found again among the rows that the MoE block itself was called with.

There is no code for single families. What shows in none of these ways is reported as unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

NUMBERS = (torch.int64, torch.int32)
NONE = -1
"""The number that stands for no expert, where a token has fewer than others."""

Arguments = tuple[Any, ...]


@dataclass
class Choices:
    """The experts that the tokens of the last forward pass were given, layer by layer."""

    layers: list[torch.Tensor] = field(default_factory=list)
    unseen: bool = False

    def take(self, tokens: int) -> torch.Tensor | None:
        """Numbers of experts `[layers, tokens, k]` int64, `NONE` for none, of the passes since the
        last call; None if any layer's choice was not seen, or not once for each of `tokens`."""
        layers, unseen = self.layers, self.unseen
        self.layers, self.unseen = [], False
        if unseen or not layers or any(len(chosen) != tokens for chosen in layers):
            return None
        most = max(chosen.shape[1] for chosen in layers)
        return torch.stack(
            [nn.functional.pad(each, (0, most - each.shape[1]), value=NONE) for each in layers]
        )

    def add(self, chosen: torch.Tensor | None) -> None:
        """One layer's choice `[tokens, k]`. Experts that occur twice for a token are no choice."""
        if chosen is None or _has_twins(chosen):
            self.unseen = True
        else:
            self.layers.append(chosen.long())


@contextmanager
def recorded_choices(model: nn.Module) -> Iterator[Choices]:
    """Record the choices of the model's forward passes in the block; no argument is kept."""
    choices = Choices()
    handles: list[Any] = []
    try:
        for block in model.modules():
            parts = [
                part
                for name, child in block.named_children()
                for part in _parts(name, child, block)
            ]
            if parts:
                handles += _Block(block, choices).watch(parts)
        yield choices
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Part:
    """A module that holds experts. number: of the one that it is, None if it holds all. sure:
    whether its name says so."""

    module: nn.Module
    number: int | None
    experts: int
    sure: bool


def _parts(name: str, child: nn.Module, block: nn.Module) -> Iterator[_Part]:
    """The modules under a block's child that hold the experts' weights, if it has any."""
    named = name.endswith("experts") and "shared" not in name
    members = list(child.children())
    if named and type(child).forward is nn.Module.forward:  # a list, which is never called
        for number, member in enumerate(members):
            yield _Part(member, number, len(members), True)
        return
    stack = next((p for p in child.parameters(recurse=False) if p.dim() == 3), None)
    if named or stack is not None:
        counted = len(members) if stack is None else len(stack)
        yield _Part(child, None, getattr(child, "num_experts", counted), named)


class _Block:
    """Watches one MoE block: what it is called with, and what reaches its experts."""

    def __init__(self, module: nn.Module, choices: Choices) -> None:
        self._module, self._choices = module, choices
        self._inputs: torch.Tensor | None = None
        self._rows: dict[int, list[torch.Tensor]] = {}
        self._told = False

    def watch(self, parts: Sequence[_Part]) -> list[Any]:
        handles = [
            part.module.register_forward_pre_hook(
                lambda _, args, kwargs, part=part: self._reached(part, args, kwargs),
                with_kwargs=True,
            )
            for part in parts
        ]
        begin = self._module.register_forward_pre_hook(
            lambda _, args, kwargs: self._begin(args, kwargs), with_kwargs=True
        )
        return [*handles, begin, self._module.register_forward_hook(self._end)]

    def _begin(self, args: Arguments, kwargs: Mapping[str, Any]) -> None:
        hidden = _floats((*args, *kwargs.values()))
        self._inputs = None if hidden is None else hidden.flatten(0, -2)
        self._rows, self._told = {}, False

    def _end(self, *_: Any) -> None:
        if self._rows and self._inputs is not None and not self._told:
            experts = max(self._rows) + 1
            self._choices.add(_found(self._inputs, self._rows, experts))
        self._inputs, self._rows = None, {}

    def _reached(self, part: _Part, args: Arguments, kwargs: Mapping[str, Any]) -> None:
        values = (*args, *kwargs.values())
        hidden = _floats(values)
        if hidden is None:
            return
        if part.number is not None:
            self._rows.setdefault(part.number, []).append(hidden.flatten(0, -2))
            return
        rows = hidden.flatten(0, -2)
        chosen = _numbers(hidden, values, part.experts)
        sizes = _sizes(values, part.experts, len(rows))
        if chosen is not None:
            self._tell(chosen)
        elif sizes is not None:
            if self._inputs is not None and not self._told:
                sorted_rows = {n: [each] for n, each in enumerate(rows.split(sizes))}
                self._tell(_found(self._inputs, sorted_rows, part.experts))
        elif part.sure:
            self._tell(_slots(rows, part.experts))

    def _tell(self, chosen: torch.Tensor | None) -> None:
        self._told = True
        self._choices.add(chosen)


def _floats(values: Sequence[Any]) -> torch.Tensor | None:
    """The first argument of hidden states."""
    return next(
        (
            value
            for value in values
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
        ),
        None,
    )


def _numbers(hidden: torch.Tensor, values: Sequence[Any], experts: int) -> torch.Tensor | None:
    """`[tokens, k]` from an argument with the experts' numbers, or with a mask of them.

    hidden: `[..., d]`. A mask is `[tokens, k, experts]`, with at most one expert in each row.
    """
    tokens = hidden[..., 0].numel()
    for value in values:
        if not isinstance(value, torch.Tensor) or value.dtype not in NUMBERS or value.dim() < 2:
            continue
        if value.shape[0] == tokens and value.dim() == 3 and value.shape[-1] == experts:
            return torch.where(value.any(-1), value.argmax(-1), NONE)
        if value.shape[:-1].numel() == tokens:
            return value.reshape(tokens, -1)
    return None


def _sizes(values: Sequence[Any], experts: int, rows: int) -> list[int] | None:
    """How many rows each expert gets, if an argument says so."""
    for value in values:
        listed = value.tolist() if isinstance(value, torch.Tensor) and value.dim() == 1 else value
        if (
            isinstance(listed, list)
            and len(listed) == experts
            and all(isinstance(number, int) for number in listed)
            and sum(listed) == rows
        ):
            return listed
    return None


def _slots(rows: torch.Tensor, experts: int) -> torch.Tensor | None:
    """`[tokens, k]` from `[experts · tokens, d]`, where a row of zeros was not chosen."""
    if experts < 2 or len(rows) % experts:
        return None
    return _listed((rows.unflatten(0, (experts, -1)) != 0).any(-1).T)


def _found(
    inputs: torch.Tensor, rows: Mapping[int, Sequence[torch.Tensor]], experts: int
) -> torch.Tensor | None:
    """`[tokens, k]` from the rows `[n, d]` that each expert got, equal to rows of `inputs`.

    Tokens with the same row are given the same experts, so that it does not matter which of them a
    row came from. None if a row is not one of the inputs.
    """
    names = _names(inputs)
    mask = torch.zeros(len(inputs), experts, dtype=torch.bool, device=inputs.device)
    for number, parts in rows.items():
        for part in parts:
            if part.shape[-1] != inputs.shape[-1] or part.dtype != inputs.dtype:
                return None
            given = _names(part)
            if not bool(torch.isin(given, names).all()):
                return None
            mask[:, number] |= torch.isin(names, given)
    return _listed(mask)


def _names(rows: torch.Tensor) -> torch.Tensor:
    """A number int64 `[n]` for each row `[n, d]`: a sum over its bits that no order changes."""
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.dtype.itemsize]
    random = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[-1],), generator=random) * 2 + 1
    bits = (rows + 0.0).contiguous().view(size).long()  # + 0.0 makes -0.0 a 0.0
    return (bits * factors.to(rows.device)).sum(-1)


def _listed(mask: torch.Tensor) -> torch.Tensor | None:
    """`[tokens, k]` of a mask `[tokens, experts]`; None unless every token has as many experts, and
    not all of them: a model that computes all experts for all tokens chooses by their weights."""
    counts = mask.sum(-1)
    most = int(counts.max()) if len(counts) else 0
    if not 0 < most < mask.shape[1] or bool((counts != most).any()):
        return None
    return mask.nonzero()[:, 1].view(-1, most)


def _has_twins(chosen: torch.Tensor) -> bool:
    ordered = chosen.sort(-1).values
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any())
