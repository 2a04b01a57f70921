"""Samples on which many codecs are tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from support.scored_model import Scored

from ders_core.codecs import Codec, Entropy, LowRank, Quantized
from ders_core.codecs.group import GroupCodec
from ders_core.decompose.base import BaseContext
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.knowledge import group_knowledge
from ders_core.recipe import Recipe, Rule
from ders_core.tune.stack_scores import GroupScorer

CODECS: Sequence[Codec] = (LowRank(energy=0.5), Quantized(bits=2), Entropy(bits=1))


@pytest.mark.parametrize("per_expert", [True, False])
def test_a_codec_is_settled_once_on_a_sample(
    scored: Scored, per_expert: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of its matrices are tried, and one after another."""
    fits, fit = Counter[Codec](), GroupCodec.fit

    def counted(
        self: GroupCodec, deltas: Callable[[Sequence[int]], Iterable[torch.Tensor]]
    ) -> GroupCodec:
        fits.update(self.codecs)
        return fit(self, deltas)

    monkeypatch.setattr(GroupCodec, "fit", counted)
    group, calibration = scored.checkpoint.group(0, "up"), Calibration.open(scored.calibration)
    recipe = Recipe(name="x", rules=(Rule(codec=CODECS[0]),))
    context = BaseContext("cpu", calibration.tokens_per_expert)
    known = group_knowledge(group, calibration, (1.0,) * group.shape[0])
    scorer = GroupScorer(group, recipe, known, context, per_expert)
    units = scorer.deltas(CODECS)
    assert len(units) == (group.shape[0] if per_expert else 1)
    assert fits == Counter(CODECS)
