"""What a packed checkpoint reads as, against an independent synthesis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.messages import raises_saying

from ders_core.codecs import Chain, DeltaCodec, EncodeContext, Entropy
from ders_core.codecs.coding.prng import expert_seed
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.tensor import FileTensor
from ders_core.packed.open import is_packed, open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule

Tensors = Callable[[Path], dict[str, torch.Tensor]]
Tamper = Callable[[dict[str, Any]], None]


def test_is_packed(packed_dir: Path, mixtral_dir: Path, tmp_path: Path) -> None:
    assert is_packed(packed_dir)
    assert not is_packed(mixtral_dir)
    assert not is_packed(tmp_path)
    assert not is_packed(tmp_path / "nowhere")


def test_surface(packed_dir: Path, mixtral_dir: Path) -> None:
    packed, original = PackedCheckpoint(packed_dir), open_checkpoint(mixtral_dir)
    assert packed.config == original.config
    assert packed.original.names() == [n for names in original.store.files.values() for n in names]
    assert packed.manifest.source.identity == original.identity
    assert packed.bytes_total < original.bytes_total
    for name, info in original.tensors.items():
        assert packed.original.spec(name) == info.spec
        assert packed.original.read(name).dtype == info.dtype.torch
    with raises_saying(CheckpointError, "tensor 'x'"):
        packed.original.read("x")


def test_read_is_base_plus_decoded_delta(packed_dir: Path, all_tensors: Tensors) -> None:
    """From the parts as safetensors reads them, with the sum in float64."""
    packed, raw = PackedCheckpoint(packed_dir), all_tensors(packed_dir)
    names = {codec.name for group in packed.manifest.groups for codec in group.group_codec().codecs}
    assert names == {"lowrank", "quantized", "sparse"}
    for group in packed.manifest.groups:
        codec, dtype = group.group_codec().codec, Dtype[group.dtype]
        assert isinstance(codec, DeltaCodec)
        shape = (group.shape[1], group.shape[2])
        for expert, source in enumerate(group.experts):
            context = EncodeContext(
                dtype.torch, expert_seed(11, group.layer, group.projection, expert)
            )
            parts = {}
            for part in codec.parts(shape, dtype):
                whole = raw[f"{group.prefix}.{part}"]
                if part in group.lengths:  # laid end to end
                    parts[part] = whole.split(list(group.lengths[part]))[expert]
                else:
                    parts[part] = whole[expert]
            delta = codec.decode(parts, shape, context)
            expected = (raw[f"{group.prefix}.base"].double() + delta.double()).to(dtype.torch)
            got = packed.original.read(source.tensor)
            # float32 addition may round once before the rounding to bfloat16
            np.testing.assert_allclose(got.double(), expected.double(), rtol=2**-7, atol=1e-6)
            assert float((got != expected).float().mean()) < 1e-3


def test_bytes_in_memory_take_one_read_of_a_stream(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(stages=(Entropy(bits=1), Entropy(bits=0.5)))
    compress(mixtral_dir, tmp_path / "packed", Recipe(name="held", rules=(Rule(codec=chain),)))
    names, words = list[str](), FileTensor.words

    def counted(tensor: FileTensor, *where: Any) -> np.ndarray:
        names.append(tensor.name)
        return words(tensor, *where)

    monkeypatch.setattr(FileTensor, "words", counted)
    packed = PackedCheckpoint(tmp_path / "packed")
    group = packed.manifest.groups[0]
    assert packed.matrices.held_bytes(group) > 0
    each = [f"{group.prefix}.{stage}.stream" for stage in (0, 1)]
    assert sorted(names) == sorted(each * group.shape[0])
