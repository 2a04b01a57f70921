"""Devices are known without torch: as torch knows them, on this machine and on made-up ones."""

from __future__ import annotations

import ctypes
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from ders_core.compute import device
from ders_core.compute.device import available_devices


class Driver:
    """CUDA's driver with a number of devices; without any, it starts as a broken one does."""

    def __init__(self, devices: int) -> None:
        self.devices = devices

    def cuInit(self, flags: int) -> int:  # noqa: N802 (the driver's name)
        return 0 if self.devices else 100

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 (the driver's name)
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return 0


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whether CUDA is found with a build of torch and a driver; torch says no if it is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("torch was asked"))

    def find(version: str, driver: Driver | None) -> bool:
        (tmp_path / "version.py").write_text(version)
        spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(device, "find_spec", lambda name: spec)

        def load(name: str) -> Driver:
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        monkeypatch.setattr(ctypes, "CDLL", load)
        return device._finds_cuda.__wrapped__()

    return find


def test_this_machine_is_as_torch_knows_it() -> None:
    assert device._finds_cuda.__wrapped__() == torch.cuda.is_available()
    assert available_devices() == ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize(
    ("cuda", "devices", "expected"),
    [("'12.8'", 2, True), ("'12.8'", 0, False), ("'12.8'", None, False), ("None", 1, False)],
)
def test_a_build_for_cuda_and_a_driver_with_devices(
    found: Any, cuda: str, devices: int | None, expected: bool
) -> None:
    version = f"cuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n"
    driver = None if devices is None else Driver(devices)
    assert found(version, driver) is expected


def test_torch_is_asked_about_other_gpus(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert found("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", None)
