"""What errors of a head cost text like the calibration's, against the KL that they cause."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.measured_calibrations import measure
from support.worse_models import Pair, pair, pair_of, text_file

from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.windows import token_windows
from ders_core.hf import load_model, load_tokenizer
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.knowledge import tensor_knowledge
from ders_core.pipeline.plan import PIECE

__all__ = ["pair", "pair_of", "text_file"]

HEAD = "lm_head.weight"
WINDOW, TOKENS = 64, 1200


def test_rare_tokens_cost_what_they_cost_the_text(
    pair: Pair, text_file: Path, tmp_path: Path
) -> None:
    sizes = {"window": WINDOW, "max_tokens": TOKENS}
    calibration = measure(pair.original, tmp_path / "c", text_file, others=True, **sizes)
    tensor = open_checkpoint(pair.original).others[HEAD]
    known = tensor_knowledge(tensor.cut(PIECE), calibration)
    assert known.charged is not None
    assert known.curvatures is not None
    tokenizer, model = load_tokenizer(pair.original), load_model(pair.original, dtype=torch.float32)
    windows = token_windows(tokenizer, read_text(text_file, tokenizer), WINDOW, TOKENS)
    inputs = list[torch.Tensor]()
    hook = model.lm_head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.inference_mode():
        model(windows)
        hook.remove()
        x = inputs[0].flatten(0, 1).double()
        weight = model.lm_head.weight.double()
        before = (x @ weight.T).log_softmax(-1)
        # louder errors in the rows of rare tokens, as codes of one relative error have
        rows = before.exp().mean(0)
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
        error = 0.002 * noise * (rows.median() / rows).sqrt().clamp(max=30)[:, None]
        after = (x @ (weight + error).T).log_softmax(-1)
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        charged = float(known.charged[0].cost(error.float()))
        floored = float(known.curvatures[0].cost(error.float()))
    assert charged == pytest.approx(kl, rel=0.5)
    assert floored > 2 * charged  # codecs go by that one: no token's row is given up
