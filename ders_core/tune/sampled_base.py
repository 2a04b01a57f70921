"""The base of a sample of a group's rows, on which codecs are tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs import Codec, EncodeContext
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.group import GroupCodec
from ders_core.codecs.synthesis import difference
from ders_core.codecs.tried_matrix import TriedMatrix
from ders_core.decompose.distortion import compare, is_finite
from ders_core.errors import CodecError
from ders_core.later import torch
from ders_core.pipeline.sampling import foretold_bytes
from ders_core.tune.sampled import Sampled
from ders_core.tune.sampled_judge import VALUES
from ders_core.tune.scores import Candidate


@dataclass(frozen=True)
class SampledBase:
    """matrix: the sampled rows of a base that all experts share, against zeros. context: what its
    codec knows. router: as of `Knowledge.routers_of_base`. energy: E‖Wx‖² of the sampled rows of
    all matrices that were chosen; 0 without second moments."""

    sampled: Sampled
    matrix: TriedMatrix
    context: EncodeContext
    router: Curvature | None
    energy: float

    @classmethod
    def of(cls, sampled: Sampled) -> SampledBase:
        decomposition, known = sampled.decomposition, sampled.known
        members = range(decomposition.group.shape[0])
        routers, inputs = known.routers_of_base, known.inputs
        energies = (
            [inputs.output_squared(weight) for weight in sampled.weights.values()]
            if inputs is not None
            else []
        )
        return cls(
            sampled,
            TriedMatrix(decomposition.base, torch.zeros_like(decomposition.base)),
            known.base_context(decomposition.group, 0, members, sampled.seed),
            routers(members) if routers is not None else None,
            float(sum(energies)),
        )

    def candidates(self, codecs: Sequence[Codec], group: ExpertGroup) -> list[Candidate]:
        """In their order, but for those whose steps are too fine for the values. group: of all
        rows."""
        found = list[Candidate]()
        many = max(VALUES // max(self.matrix.weight.numel(), 1), 1)
        for begin in range(0, len(codecs), many):
            coded = list[_Coded]()
            for codec in codecs[begin : begin + many]:
                with suppress(CodecError):
                    coded.append(self._coded(codec))
            if coded:
                found += self._judged(coded, group)
        return found

    def _coded(self, codec: Codec) -> _Coded:
        """Raises CodecError."""
        fitted = codec.fit([self.matrix.delta.matrix])
        after, ragged = fitted.tried(self.matrix, self.context)
        if not is_finite(after):
            raise CodecError(f"the base's values are too large for codec {codec.label!r}")
        base = self.matrix.weight
        error = compare(after, base, self.matrix.base).relative[1]
        return _Coded(codec, difference(after, base), ragged, error)

    def _judged(self, coded: Sequence[_Coded], group: ExpertGroup) -> Iterator[Candidate]:
        share, inputs = self.sampled.rows.share, self.sampled.known.inputs
        errors = torch.stack([each.difference for each in coded])
        nothing = torch.zeros(len(coded), dtype=torch.float64)
        outputs = nothing
        if inputs is not None and self.energy:
            outputs = len(self.sampled.weights) * inputs.outputs_squared(errors) / self.energy
        costs, router_costs = (
            curvature.squares(errors, self.context.moments) / 2 / share
            if curvature is not None
            else nothing
            for curvature in (self.context.curvature, self.router)
        )
        shape, told = (group.shape[1], group.shape[2]), torch.stack([costs, outputs, router_costs])
        for each, (noise, output, router) in zip(coded, told.T.tolist(), strict=True):
            same = GroupCodec.same(each.codec, 1)
            nbytes = foretold_bytes(same, shape, group.dtype, each.ragged / share)
            exact = each.codec.exact
            yield Candidate(each.codec, nbytes, exact, noise, output, router, 1.0, each.error)


@dataclass(frozen=True)
class _Coded:
    """What came back of the base in a codec. difference: float32 `[rows, in]`, from what it was.
    ragged: as of `Codec.tried`. error: as of `Candidate`."""

    codec: Codec
    difference: torch.Tensor
    ragged: float
    error: float
