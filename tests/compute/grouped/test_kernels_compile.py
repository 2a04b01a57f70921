"""Kernels compile for a GPU, without one: the interpreter checks values alone."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

PROGRAM = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ders_core.compute.grouped import entries, matrices, planes

TILES = {"pairs_taken": 16, "rows_taken": 64, "step": 64}
WHOLE = ("each out width columns column bytes_each plane blocks size levels_each marks_each "
         "entries_each cells count scales_each")
TYPES = {name: "i32" for name in WHOLE.split()}
TYPES |= {"y": "*fp32", "pairs": "*i32", "experts": "*i32", "shares": "*fp32", "starts": "*i32",
          "codes": "*u8", "marks": "*u8", "entries": "*u8", "weights": "*bf16", "scales": "*bf16",
          "tops": "*bf16", "offsets": "*bf16", "levels": "*fp32", "values": "*bf16",
          "start": "fp32", "gain": "fp32"}
PLAIN = {"tops": None, "offsets": None, "levels": None}
ROWS = {"rows_taken": 1, "step": 128, "scaled": 128}
CASES = [
    (matrices, {}, {"shares": None}),
    (planes, {}, {**PLAIN, "bits": 2}),
    (planes, {}, {**PLAIN, "bits": 0}),
    (planes, {"scales": "*u8"}, {"bits": 3, "shares": None}),
    (entries, {}, {**ROWS, "low": 4, "levels": None, "scales": None}),
    (entries, {"values": "*u8", "scales": "*fp32"}, {**ROWS, "low": 8}),
]
for factors, inputs in ((tl.bfloat16, "*bf16"), (tl.float32, "*fp32")):
    for module, types, constants in CASES:
        kernel, known = module._multiply, {**TILES, "factors": factors, **constants}
        kinds = {**TYPES, "x": inputs, **types}
        kinds |= dict.fromkeys(known, "constexpr")
        signature = {name: kinds[name] for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in known.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
        print("compiled")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton comes with CUDA builds of torch")
def test_kernels_compile_for_a_gpu() -> None:
    """In a process of its own, where nothing is interpreted."""
    environment = {k: value for k, value in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["compiled"] * 12
