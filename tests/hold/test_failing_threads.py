"""An error in one expert's thread, while others are encoded and written, costs its group alone."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.compress_support import TWO_BITS
from support.messages import raises_saying

from ders_core.checkpoint.matrix import Matrix
from ders_core.codecs import Quantized
from ders_core.compute.threads import threads_of_torch
from ders_core.errors import CheckpointError, CodecError, DersError, OutputError
from ders_core.files.in_place import Growing
from ders_core.pipeline.compress import compress

PLACES: dict[str, tuple[Any, str, Callable[[], Exception], str]] = {
    "encoding": (Quantized, "pack", lambda: CodecError("one expert fails"), "one expert fails"),
    "reading": (Matrix, "read_into", lambda: CheckpointError("a file is gone"), "a file is gone"),
    "writing": (Growing, "append", lambda: OSError(errno.ENOSPC, "No space left"), "space"),
}


def files(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in place.rglob("*") if file.is_file()}


@pytest.mark.parametrize("where", PLACES)
def test_one_of_several_threads_fails(
    where: str, mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, error, fact = PLACES[where]
    work = getattr(owner, name)
    lock, calls, fatal = threading.Lock(), 0, 0

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            fails = calls >= fatal  # what is tried again fails again
        if fails:
            raise error()
        return work(*given, **options)

    with threads_of_torch(3):
        compress(mixtral_dir, tmp_path / "whole", TWO_BITS)
        whole = files(tmp_path / "whole")
        for fatal in (1, 3, 9):
            calls, out = 0, tmp_path / f"out{fatal}"
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, counted)
                with raises_saying(DersError, fact):
                    compress(mixtral_dir, out, TWO_BITS)
            assert calls >= fatal
            assert not out.exists()
            alive = {thread.name.partition("_")[0] for thread in threading.enumerate()}
            assert alive.isdisjoint(("compute", "read-ahead"))
            try:
                compress(mixtral_dir, out, TWO_BITS)
            except OutputError:  # a group was finished before
                compress(mixtral_dir, out, TWO_BITS, resume=True)
            assert files(out) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out1", "out3", "out9", "whole"]
