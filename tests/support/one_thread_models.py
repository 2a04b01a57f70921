"""transformers' advice and bars off, and its models on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: threads cost more than they give
    yield
    torch.set_num_threads(threads)
