"""What a window's answers are compared by, on a device: two waits, however many layers and experts
a model has, and the figures of the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.counted_device import DEVICE, counted_waits

from ders_core.evaluate.forward import Answers
from ders_core.evaluate.measured import Measured
from ders_core.evaluate.reference import Kept

TOKENS, VOCABULARY, LAYERS, WINDOWS = 9, 40, 3, 2


def answers(seed: int, experts: int) -> Answers:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(TOKENS, VOCABULARY, generator=random)
    chosen = torch.randint(experts, (LAYERS, TOKENS, 2), generator=random)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=random)
    return Answers(logits.log_softmax(-1), chosen, targets)


def on_device(window: Answers) -> Answers:
    assert window.chosen is not None
    there = {name: getattr(window, name).to(DEVICE) for name in ("log_probs", "chosen", "targets")}
    return replace(window, **there)


@pytest.mark.parametrize("experts", [2, 5, 10])
def test_a_window_is_waited_for_twice(experts: int) -> None:
    here, there = Measured(), Measured()
    for window in range(WINDOWS):
        original, model = answers(2 * window, experts), answers(2 * window + 1, experts)
        kept = Kept(original.log_probs, original.log_probs.argmax(-1), original.chosen)
        expected = here.compare(model, kept)
        with counted_waits() as counted:
            compared = there.compare(on_device(model), kept)
            assert counted.total() == 2
            assert counted["aten::_local_scalar_dense"] == 1  # the loss
        np.testing.assert_allclose(compared.token_kl, expected.token_kl, rtol=1e-12)
        assert torch.equal(compared.top, model.log_probs.argmax(-1))
    found, wanted = there.totals, here.totals
    assert found.kl == pytest.approx(wanted.kl, rel=1e-12)
    assert found.kl == pytest.approx(sum(float(kl.sum()) for kl in there.token_kl))
    assert found.loss == pytest.approx(wanted.loss)
    assert (found.same_top, found.routing_agreement) == (wanted.same_top, wanted.routing_agreement)
    assert 0 < found.same_experts < WINDOWS * LAYERS * TOKENS
