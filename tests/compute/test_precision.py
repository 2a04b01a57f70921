"""`auto` computes in what the device multiplies fast and its memory holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from support.messages import raises_saying

from ders_core.compute import memory
from ders_core.compute.precision import (
    INSTRUCTIONS,
    auto_dtype,
    dtype_label,
    multiplies,
    parse_dtype,
)
from ders_core.errors import DersError

CPU = torch.device("cpu")


def cpu_with(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True), raising=False
    )
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("instructions", "stored", "computed"),
    [
        (["avx2"], torch.bfloat16, torch.float32),
        (["avx2", "avx512_f"], torch.bfloat16, torch.float32),
        (["avx2", "avx512_bf16"], torch.bfloat16, torch.bfloat16),
        (["amx_bf16"], torch.bfloat16, torch.bfloat16),
        (["neon", "bf16"], torch.bfloat16, torch.bfloat16),
        (["avx512_bf16"], torch.float16, torch.float32),
        (["avx512_fp16"], torch.float16, torch.float16),
        ([], torch.float32, torch.float32),
        ([], torch.float64, torch.float64),
    ],
)
def test_the_instructions_decide(
    instructions: list[str],
    stored: torch.dtype,
    computed: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu_with(monkeypatch, *instructions)
    assert auto_dtype(stored, 1000, CPU) == computed


def test_without_onednn_torch_does_not_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert auto_dtype(torch.bfloat16, 1000, CPU) == torch.float32


def test_a_torch_that_lists_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    for has in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has, raising=False
        )
        assert multiplies(torch.bfloat16, CPU) == has


def test_torch_knows_the_names_of_the_instructions() -> None:
    """A name that torch changes would turn `auto` into float32 everywhere."""
    capabilities = torch.cpu.get_capabilities()
    x86 = {"avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16"}
    known = {name for names in INSTRUCTIONS.values() for name in names}
    expected = x86 if "avx2" in capabilities else known - x86
    assert expected <= capabilities.keys()


def test_what_does_not_fit_in_float32_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    monkeypatch.setattr(memory, "CGROUPS", ())
    assert auto_dtype(torch.bfloat16, 1000, CPU) == torch.float32  # 4 bytes and a quarter more
    assert auto_dtype(torch.bfloat16, 1001, CPU) == torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_without_emulation(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    chosen = auto_dtype(torch.bfloat16, 1000, torch.device("cuda"))
    assert chosen == (torch.bfloat16 if native else torch.float32)
    assert asked == [False]


def test_words() -> None:
    assert parse_dtype("auto") is None
    assert parse_dtype("bfloat16") == torch.bfloat16
    assert dtype_label(torch.float32) == "float32"
    with raises_saying(DersError, "'int8'", "auto", "float32", "bfloat16", "float16"):
        parse_dtype("int8")
