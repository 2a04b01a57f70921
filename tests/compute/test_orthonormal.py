"""Orthonormal columns on a CPU and on a device that is not waited for, also of what has fewer
dimensions than columns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.codec_support import gauss
from support.counted_device import DEVICE, counted_waits

from ders_core.compute.orthonormal import orthonormal, orthonormal_to

SIZE, COLUMNS = 90, 12
BASIS = torch.linalg.qr(gauss((SIZE, 30), 9, 1.0))[0]
INSIDE = BASIS @ gauss((30, COLUMNS), 1, 1.0)
BLOCKS: dict[str, Callable[[], torch.Tensor]] = {
    "random": lambda: gauss((SIZE, COLUMNS), 1, 1.0),
    "nearly the same": lambda: gauss((SIZE, 1), 1, 1.0) + 1e-6 * gauss((SIZE, COLUMNS), 2, 1.0),
    "of 3 dimensions": lambda: gauss((SIZE, 3), 1, 1.0) @ gauss((3, COLUMNS), 2, 1.0),
    "of the basis": lambda: INSIDE,
    "nearly of the basis": lambda: INSIDE + gauss((SIZE, COLUMNS), 2, 1e-6),
    "of all sizes": lambda: gauss((SIZE, COLUMNS), 1, 1.0) * torch.logspace(0, -33, COLUMNS),
    "one entry": lambda: torch.eye(SIZE)[:, :1].expand(SIZE, COLUMNS).contiguous(),
    "zeros": lambda: torch.zeros(SIZE, COLUMNS),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("device", ["cpu", DEVICE], ids=str)
def test_columns_are_orthonormal_or_zeros(name: str, device: torch.device | str) -> None:
    """To each other and to the basis; they span what the block has beside it, if that is more than
    rounding. A CPU makes up what is missing."""
    block = BLOCKS[name]()
    with torch.inference_mode(), counted_waits() as counted:
        alone = orthonormal(block.to(device))
        beside = orthonormal_to(BASIS.to(device), block.to(device))
        assert not counted.total()
        alone, beside = alone.cpu(), beside.cpu()
    for columns, others in ((alone, BASIS[:, :0]), (beside, BASIS)):
        lengths = columns.double().norm(dim=0)
        gone = lengths == 0
        assert not (device == "cpu" and gone.any())
        torch.testing.assert_close(lengths[~gone], torch.ones(int((~gone).sum())).double())
        products = columns.T @ torch.cat((others, columns), 1)
        products[:, others.shape[1] :].fill_diagonal_(0.0)
        assert float(products.abs().max()) < 1e-5
        exact, known = block.double(), torch.cat((others, columns), 1).double()
        left = exact - known @ (known.T @ exact)
        assert bool((left.norm(dim=0) <= 1e-5 * exact.norm(dim=0)).all())
