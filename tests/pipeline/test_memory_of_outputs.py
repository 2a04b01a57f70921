"""Errors of outputs are judged in memory that is used again: the allocator gives nothing as large
as a few rows, of whose thousands it would leave gaps."""

from __future__ import annotations

import torch
from support.codec_support import gauss
from torch.profiler import ProfilerActivity, profile

from ders_core.codecs import EncodeContext
from ders_core.compute.pieces import CHUNK
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.judge import Judge

WIDTH = 512
ROWS = 4 * CHUNK // WIDTH + 3


def test_the_allocator_gives_no_rows_whose_outputs_are_judged() -> None:
    weight = gauss((ROWS, WIDTH), 1).bfloat16()
    synthesized = (weight.float() + 0.1 * gauss((ROWS, WIDTH), 2)).bfloat16()
    moments = gauss((WIDTH,), 3).abs() + 0.1
    context = EncodeContext(torch.bfloat16, 0, moments)
    judge = Judge(weight, weight, context, inputs=Inputs.of(moments, 9.0))
    squares = torch.zeros(4, dtype=torch.float64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        sums = judge.sums(synthesized, synthesized, squares, squares, squares[:2])
    taken = [event.self_cpu_memory_usage for event in seen.events()]
    assert 0 < max(taken) < CHUNK  # a piece of rows has CHUNK values of 4 bytes
    exact, error = weight.double(), synthesized.double() - weight.double()
    expected = [(each.square() * moments.double()).sum() for each in (error, exact)]
    torch.testing.assert_close(sums[8:10], torch.stack(expected), rtol=1e-6, atol=0.0)
