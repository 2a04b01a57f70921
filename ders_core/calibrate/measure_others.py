"""All other matrices together: their sums while windows are passed, and what the file gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from ders_core.calibrate.lookups import LookupObserver
from ders_core.calibrate.other_sums import OtherSums, share_inputs
from ders_core.calibrate.others import Others
from ders_core.calibrate.placement import Placement
from ders_core.pipeline.others import PREFIX, OtherNotes
from ders_core.pipeline.tipping import ROUTER_COLUMNS, ROUTER_ROWS


@dataclass
class OtherMeasure:
    """sums: by the tensors' names. left_out: as of `Others`. vocabularies: names of the tensors
    whose rows are tokens. read_by: those of the embeddings that the model reads text by. shared:
    as of `share_inputs`; None before the first window."""

    sums: dict[str, OtherSums] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    vocabularies: set[str] = field(default_factory=set)
    read_by: set[str] = field(default_factory=set)
    shared: dict[str, str] | None = None
    routers: dict[str, OtherSums] = field(default_factory=dict)
    """Sums of the gradients of routers' margins, where those were measured."""
    router_tokens: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, others: Others, max_width: int) -> OtherMeasure:
        """max_width: of wider inputs only the diagonal of the moments is kept."""
        sums = {each.name: OtherSums.empty(each, max_width) for each in others.tensors}
        inputs = _address(model.get_input_embeddings)
        outputs = _address(model.get_output_embeddings)
        starts = {name: each.tensor.pieces[0].matrix.data_ptr() for name, each in sums.items()}
        read_by = {name for name, start in starts.items() if start == inputs}
        answered_by = {name for name, start in starts.items() if start == outputs}
        return cls(sums, dict(others.left_out), read_by | answered_by, read_by)

    @classmethod
    def nothing(cls) -> OtherMeasure:
        """Where others are not measured."""
        return cls()

    @property
    def tensors(self) -> Iterator[tuple[torch.Tensor, Placement]]:
        """The matrices in which they lie, and where."""
        for each in self.sums.values():
            yield from each.tensor.placements()

    def lookups(self) -> AbstractContextManager[object]:
        """Within it lookups are observed."""
        return LookupObserver(self.sums.values()) if self.sums else nullcontext()

    def add_inputs(self) -> None:
        """At the end of a window's forward pass: add what has entered. Which tensors have the same
        inputs the first window tells; where it is otherwise later, they have none."""
        shared = share_inputs(self.sums)
        if self.shared is None:
            self.shared = shared
        for name, one in list(self.shared.items()):
            self.sums[name].inputs = None
            self.sums[name].weighted = self.sums[one].weighted
            if shared.get(name) != one and self.sums[name].entered:
                del self.shared[name]
                self.sums[name].weighted = self.sums[one].weighted = None
        for each in self.sums.values():
            each.add_inputs()

    @contextmanager
    def router_window(self, tokens: int) -> Iterator[None]:
        """Of a window of so many tokens, gradients are those of routers' margins."""
        if not self.routers:
            for name, each in self.sums.items():
                self.routers[name] = OtherSums.empty(each.tensor, 0)
                self.routers[name].inputs = self.routers[name].weighted = None
        with LookupObserver(self.routers.values()) if self.routers else nullcontext():
            yield
        for each in self.routers.values():
            each.add_inputs()  # forgets them
        self.router_tokens += tokens

    def tensors_of_file(self, tokens: int) -> tuple[dict[str, torch.Tensor], OtherNotes]:
        """By their names in a calibration file, and its notes. tokens: of all windows."""
        troubles = {
            name: f"the model {trouble.value}"
            for name, each in self.sums.items()
            for trouble in [each.finished(name in self.read_by)]
            if trouble
        }
        known = {name: each for name, each in self.sums.items() if name not in troubles}
        measured = {
            f"{PREFIX}{name}.{kind}": tensor
            for name, each in known.items()
            for kind, tensor in each.tensors(tokens, name in self.vocabularies).items()
        }
        routers = {
            f"{PREFIX}{name}.{kind}": tensor
            for name, each in self.routers.items()
            if name in known
            for kind, tensor in each.marginals(
                self.router_tokens, ROUTER_COLUMNS, ROUTER_ROWS
            ).items()
        }
        inputs = {
            name: one for name, one in (self.shared or {}).items() if name in known and one in known
        }
        return measured | routers, OtherNotes(self.left_out | troubles, inputs)


def _address(embeddings: Callable[[], object]) -> int | None:
    """Where the weight of a model's embeddings lies, if it has such."""
    try:
        weight = getattr(embeddings(), "weight", None)
    except NotImplementedError:
        return None
    return weight.data_ptr() if isinstance(weight, torch.Tensor) else None
