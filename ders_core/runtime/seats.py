"""Which modules of a model hold the experts of which layers of a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ders_core.runtime.forms.decorated import DecoratedForm
from ders_core.runtime.forms.form import FORMS, ExpertsForm
from ders_core.runtime.forms.linears import OwnForm
from ders_core.runtime.probe import computes_as_known
from ders_core.runtime.resident import Groups

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class _Seat:
    """name: of the module in its model."""

    name: str
    form: ExpertsForm

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """As of its form; no, where the module does not have what the form reads."""
        try:
            return self.form.fits(shapes)
        except Exception:  # a later version of a class may hold weights in any way
            return False

    def words_in(self, block: str) -> int:
        """How many words of a block's name are in the module's."""
        return len({*self.name.split(".")} & {*block.split(".")})


def seats_of(model: nn.Module, layers: Groups) -> dict[int, list[ExpertsForm]]:
    """Layer -> forms of the modules that hold its experts; several where a model ties their
    weights. Left out: layers for which there is none, or more than one that may be it.

    model: with its weights, perhaps on `meta`. A class is tried before it is taken for known.
    """
    seats: dict[tuple[str, ...], list[_Seat]] = {}
    for name, module in model.named_modules():
        form = form_of(module)
        if form is not None:
            seats.setdefault(_numbers(name), []).append(_Seat(name, form))
    ties = _Ties.of(model)
    found: dict[int, list[_Seat]] = {}
    for layer, groups in layers.items():
        block = next(iter(groups.values())).block.name
        shapes = {name: group.shape for name, group in groups.items()}
        fitting = [seat for seat in seats.get(_numbers(block), ()) if seat.fits(shapes)]
        best = _best(fitting, block)
        if best is not None:
            others = (seat for seat in fitting if seat is not best)
            tied = [seat for seat in others if ties.ties(best.form, seat.form)]
            found[layer] = [best, *tied]
    uses = Counter(seat.name for of_layer in found.values() for seat in of_layer)
    known: dict[type, bool] = {}
    for layer, of_layer in [*found.items()]:
        for seat in of_layer:
            kind = type(seat.form.module)
            if kind not in known:
                known[kind] = computes_as_known(seat.form)
        if not all(known[type(seat.form.module)] and uses[seat.name] == 1 for seat in of_layer):
            del found[layer]
    return {layer: [seat.form for seat in of_layer] for layer, of_layer in found.items()}


def form_of(module: nn.Module) -> ExpertsForm | None:
    """How a module holds and computes experts, if it is of a kind that does and has what its form
    reads."""
    own = next((kind for kind in (DecoratedForm, OwnForm) if kind.is_of(module)), None)
    kind = own or FORMS.get(type(module).__name__)
    try:
        return kind(module) if kind else None
    except Exception:  # a later version of a class may hold experts in any way
        return None


def _best(fitting: Sequence[_Seat], block: str) -> _Seat | None:
    """The one whose name is most like the block's, of those whose weights have the shapes."""
    most = max((seat.words_in(block) for seat in fitting), default=0)
    likest = [seat for seat in fitting if seat.words_in(block) == most]
    return likest[0] if len(likest) == 1 else None


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(_NUMBER.findall(name))


@dataclass(frozen=True)
class _Ties:
    """Parameters of a model that are one and the same. names: of its modules, by identity. roots:
    name of a parameter -> name of the one with which it is tied."""

    names: Mapping[int, str]
    roots: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> _Ties:
        names = {id(module): name for name, module in model.named_modules()}
        return cls(names, getattr(model, "all_tied_weights_keys", {}))

    def ties(self, first: ExpertsForm, second: ExpertsForm) -> bool:
        """Whether all weights of both are tied with each other."""
        return self._roots(first) == self._roots(second)

    def _roots(self, form: ExpertsForm) -> list[str]:
        names = [f"{self.names[id(holder)]}.{name}" for holder, name in form.weights()]
        return [self.roots.get(name, name) for name in names]
