"""The device of tests refuses what a GPU would, and counts what is sent there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.counted_device import DEVICE, counted_waits

PLACES = torch.tensor([0, 2])

Use = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    "use",
    [
        lambda far: far + torch.ones(3),
        lambda far: torch.ones(3).sub_(far),
        lambda far: far.index_select(0, PLACES),
        lambda far: torch.arange(3)[far.long()],
        lambda far: far.index_put((PLACES,), torch.ones(2)),
        lambda far: torch.stack([far[0], torch.tensor(1.0)]),
        lambda far: far * torch.tensor(2.0).expand_as(far),
    ],
)
def test_tensors_of_the_cpu_beside_those_of_the_device_are_refused(use: Use) -> None:
    with torch.inference_mode(), counted_waits():
        far = torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            use(far)


def test_what_is_sent_there_is_counted() -> None:
    with counted_waits() as counted:
        far = torch.ones(3).to(DEVICE)
        assert counted.sent.total() == 1
        assert far[PLACES].cpu().tolist() == [1, 1]
        far.copy_(torch.full((3,), 2.0))
        assert torch.as_tensor([1.0], device=DEVICE).cpu().tolist() == [1]
        assert counted.sent.total() == 4
        far.copy_(torch.full((3,), 3.0), non_blocking=True)
        assert (far * torch.tensor(2.0)).cpu().tolist() == [6, 6, 6]
        assert counted.sent.total() == 4


@pytest.mark.parametrize(
    "use",
    [
        lambda far: float(far[0, 0]),
        lambda far: bool((far > 1).any()),
        lambda far: far[far > 1],
        lambda far: torch.where(far > 1),
        lambda far: torch.masked_select(far, far > 1),
        lambda far: torch.unique(far),
        lambda far: torch.unique(far, dim=0),
        lambda far: torch.unique_consecutive(far, dim=0),
        lambda far: torch.bincount(far[0].long()),
        lambda far: torch.histc(far, 4),
        lambda far: torch.allclose(far, far),
        lambda far: torch.multinomial(far, 2),
        lambda far: torch.linalg.cholesky(far),
        lambda far: torch.cholesky_inverse(far),
        lambda far: torch.linalg.inv(far),
        lambda far: torch.linalg.solve(far, far),
        lambda far: torch.linalg.lu_factor(far),
        lambda far: torch.linalg.eigh(far),
        lambda far: torch.linalg.svdvals(far),
        lambda far: torch.linalg.lstsq(far, far),
        lambda far: torch.linalg.inv_ex(far, check_errors=True),
        lambda far: far.cpu(),
        lambda far: torch.zeros(3, 3).copy_(far),
        lambda far: far.repeat_interleave(far[0].long(), 0),
    ],
)
def test_what_a_gpu_is_waited_for_is_counted(use: Callable[[torch.Tensor], object]) -> None:
    with torch.inference_mode(), counted_waits() as counted:
        use((2 * torch.eye(3)).to(DEVICE))
        assert counted.total() == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda far: torch.linalg.qr(far),
        lambda far: torch.linalg.cholesky_ex(far),
        lambda far: torch.linalg.solve_ex(far, far),
        lambda far: torch.linalg.det(far),
        lambda far: torch.linalg.solve_triangular(far, far, upper=True),
        lambda far: torch.histc(far, 4, 0, 3),
        lambda far: torch.count_nonzero(far),
        lambda far: far.topk(2),
        lambda far: far[0].sort(),
        lambda far: far.scatter_add(0, far.long(), far),
        lambda far: torch.where(far > 1, far, 0.0),
        lambda far: far.repeat_interleave(far[0].long(), 0, output_size=2),
        lambda far: far[:, 1:].T @ far,
    ],
)
def test_what_a_gpu_is_not_waited_for_is_not(use: Callable[[torch.Tensor], object]) -> None:
    with torch.inference_mode(), counted_waits() as counted:
        use((2 * torch.eye(3)).to(DEVICE))
        assert counted.total() == 0


def test_a_list_that_indexes_is_refused() -> None:
    """torch sends it to the device where nobody sees it, and its values would be lost here."""
    with torch.inference_mode(), counted_waits():
        far = torch.ones(3, 3).to(DEVICE)
        with pytest.raises(RuntimeError, match="without being sent"):
            far[:, [0, 2]]
