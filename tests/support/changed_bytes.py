"""Changes of a checkpoint's tensors that the sample of its identity does not see."""

from __future__ import annotations

from pathlib import Path

from ders_core.files.store import SAMPLE_BYTES, TensorStore


def change_unseen(directory: Path, name: str, place: int = 0, bit: int = 0) -> None:
    """Flip a bit of the tensor's byte at `place`, in its file; the identity stays as it was."""
    store = TensorStore.open(directory)
    tensor = store.tensors[name]
    middle = (tensor.nbytes - SAMPLE_BYTES) // 2
    assert not middle <= place < middle + SAMPLE_BYTES, "the sample would see it"
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.begin + place)
        byte = file.read(1)[0]
        file.seek(tensor.begin + place)
        file.write(bytes([byte ^ (1 << bit)]))
    assert TensorStore.open(directory).identity == store.identity
