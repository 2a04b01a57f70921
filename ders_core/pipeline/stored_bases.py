"""Bases as they are stored, and what their errors cost that experts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ders_core.checkpoint import MatrixStack
from ders_core.codecs import Codec, DeltaCodec, Parts
from ders_core.codecs.group import BaseForm, Stacked
from ders_core.codecs.synthesis import difference
from ders_core.compute.brought import bring_together
from ders_core.decompose.decomposition import Decomposition
from ders_core.decompose.distortion import is_finite
from ders_core.errors import CheckpointError
from ders_core.later import torch
from ders_core.pipeline.knowledge import Knowledge
from ders_core.pipeline.together import packed_each


@dataclass(frozen=True)
class StoredBases:
    """Bases as they are stored, and the decomposition against what they give back.

    origin: the decomposition before, if deltas are taken against that: then all experts share the
    bases' errors. unrounded: the decomposition against what bases give back in float32, likewise.
    """

    decomposition: Decomposition
    form: BaseForm | None
    tensors: Mapping[str, Stacked]
    origin: Decomposition | None = None
    unrounded: Decomposition | None = None

    def start_of(self, number: int) -> torch.Tensor | None:
        """What a delta is taken against, if it is not what the base gives back."""
        return None if self.origin is None else self.origin.base_of(number)

    def delta_start(self, number: int, codec: Codec) -> torch.Tensor:
        """What a matrix is packed against."""
        start = self.start_of(number) if isinstance(codec, DeltaCodec) else None
        return self.decomposition.base_of(number) if start is None else start

    def unrounded_of(self, number: int) -> torch.Tensor:
        """The base, in float32 if its rounding is not known to the delta."""
        return (self.unrounded or self.decomposition).base_of(number)

    @property
    def ragged_bytes(self) -> int:
        """Of the parts whose length depends on the data."""
        ragged = (self.form.lengths or {}) if self.form is not None else {}
        return sum(self.tensors[f"base.{part}"].spec.nbytes for part in ragged)


def store_bases(
    decomposition: Decomposition,
    form: BaseForm | None,
    known: Knowledge,
    seed: int,
    is_shared: bool,
) -> StoredBases:
    """Bases in the form that they get. Deltas are taken against what that gives back; if experts
    share its error, against the bases as they were."""
    if form is None:
        return StoredBases(decomposition, None, {})
    base, stacked = decomposition.base, decomposition.bases is not None
    form = replace(form, count=len(base) if stacked else None)
    if not form.is_coded:
        return StoredBases(decomposition, form, {"base": Stacked.whole(base.cpu())})
    where = form.stacked.device_of(base.device)
    known = _known_on(where, known, base.device)
    bases = list(base.to(where)) if stacked else [base.to(where)]
    zeros = torch.zeros_like(bases[0])
    codec = form.stacked.fit(lambda chosen: [bases[number].float() for number in chosen])
    contexts = [
        known.base_context(decomposition.group, number, members_of(decomposition, number), seed)
        for number in range(len(bases))
    ]
    coded = packed_each(codec.codecs[0], bases, [zeros] * len(bases), contexts)
    given_back, unrounded = [], []
    for number, (packed, context) in enumerate(zip(coded, contexts, strict=True)):
        given_back.append(codec.expert(number).unpack(packed, zeros, context))
        if is_shared:
            unrounded.append(codec.expert(number).unpack_as(torch.float32, packed, zeros, context))
    tensors, lengths = codec.stack(_left(coded))

    def against(bases: list[torch.Tensor]) -> Decomposition:
        whole = torch.stack(bases) if stacked else bases[0]
        return replace(decomposition, base=whole.to(base.device))

    stored = against(given_back)
    if not is_finite(stored.base):
        what = f"{decomposition.group.title}: the base"
        raise too_large(decomposition.group, what, codec.label)
    return StoredBases(
        stored,
        replace(form, codec=codec.codecs[0], lengths=lengths),
        {f"base.{part}": tensor for part, tensor in tensors.items()},
        decomposition if is_shared else None,
        against(unrounded) if is_shared else None,
    )


def _left(coded: Sequence[Parts]) -> list[Parts]:
    """The parts of each base on the CPU; from a GPU they come together."""
    brought = iter(bring_together([part for parts in coded for part in parts.values()]))
    return [{name: next(brought) for name in parts} for parts in coded]


def _known_on(where: torch.device, known: Knowledge, device: torch.device) -> Knowledge:
    """What is known, where bases are coded. device: of what is known."""
    return known if where == device else replace(known, own=()).on(where)  # own guide no base


@dataclass(frozen=True)
class SharedCosts:
    """What errors of bases cost that all experts share, as of `ReportEntry`; None where it is not
    known. 0 where deltas are taken against what bases give back."""

    cost: float | None
    router_noise: float | None


def shared_costs(stored: StoredBases, known: Knowledge) -> SharedCosts:
    """What the errors of all bases cost. known: by which they were coded."""
    if stored.origin is None or stored.form is None:
        return SharedCosts(0.0, 0.0)
    base, device = stored.decomposition.base, stored.decomposition.base.device
    known = _known_on(stored.form.stacked.device_of(device), known, device)
    count = 1 if stored.decomposition.bases is None else len(base)
    costs = [_costs_of(each, stored.origin, stored.decomposition, known) for each in range(count)]
    return SharedCosts(_summed([each[0] for each in costs]), _summed([each[1] for each in costs]))


def _costs_of(
    number: int, origin: Decomposition, stored: Decomposition, known: Knowledge
) -> list[torch.Tensor | None]:
    """What the error of a base costs, and how far it moves choices: float64 `[]` on its device;
    None where that was not measured."""
    members, guiding = members_of(stored, number), known.guiding
    curvatures = [
        known.of_base(members) if known.of_base and known.curvatures else None,
        known.routers_of_base(members) if known.routers_of_base and known.routers else None,
    ]
    if curvatures == [None, None]:
        return [None, None]
    where = stored.base.device if guiding is None else guiding.device
    which = ... if stored.bases is None else number
    error = difference(stored.base[which].to(where), origin.base[which].to(where))
    return [None if each is None else each.cost(error, guiding) for each in curvatures]


def _summed(costs: Sequence[torch.Tensor | None]) -> float | None:
    """The sum of what bases cost, which a GPU is asked for once; None if one is not known."""
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    return sum(map(float, bring_together(known)), start=0.0)


def members_of(decomposition: Decomposition, base: int) -> list[int]:
    """The experts that have a base."""
    if decomposition.bases is None:
        return list(range(decomposition.group.shape[0]))
    return [expert for expert, each in enumerate(decomposition.bases) if each == base]


def too_large(stack: MatrixStack, what: str, codec: str) -> CheckpointError:
    """The error of values that a codec cannot give back. what: whose they are."""
    return CheckpointError(
        f"{what}: its values are too large for codec {codec!r} in {stack.dtype.name}; keep it as "
        "it is (codec: keep)"
    )
