"""The base of a sample of a group's rows, on which codecs are tried."""

from __future__ import annotations

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

    def candidate(self, codec: Codec, group: ExpertGroup) -> Candidate:
        """group: of all rows. Raises CodecError."""
        base, share = self.matrix.weight, self.sampled.rows.share
        inputs, moments = self.sampled.known.inputs, self.context.moments
        after, ragged = codec.fit([self.matrix.delta.matrix]).tried(self.matrix, self.context)
        if not is_finite(after):
            raise CodecError(f"the base's values are too large for codec {codec.label!r}")
        error = difference(after, base)
        curvature, output = self.context.curvature, 0.0
        if inputs is not None and self.energy:
            lost = float(inputs.output_squared(error))
            output = len(self.sampled.weights) * lost / self.energy
        same, shape = GroupCodec.same(codec, 1), (group.shape[1], group.shape[2])
        return Candidate(
            codec,
            foretold_bytes(same, shape, group.dtype, ragged / share),
            codec.exact,
            float(curvature.cost(error, moments)) / share if curvature is not None else 0.0,
            output,
            float(self.router.cost(error, moments)) / share if self.router is not None else 0.0,
            1.0,
            compare(after, base, self.matrix.base).relative[1],
        )
