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
