"""Checkpoints at an address: the same as on a disk, and no more is moved than is needed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.changed_bytes import change_unseen
from support.messages import raises_saying
from support.range_server import Server, serving
from support.shell import ders, error_of

from ders_core.analysis.summary import summarize
from ders_core.checkpoint import Checkpoint
from ders_core.errors import CheckpointError
from ders_core.files import remote
from ders_core.files.dtype import Dtype
from ders_core.files.model_files import INDEX
from ders_core.files.spec import TensorSpec
from ders_core.files.store import TensorStore
from ders_core.files.writer import encode_header, shards, write_index
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.verify import verify
from ders_core.recipe import load_recipe

K, D, H = 4, 6, 10  # experts, hidden size, inner size


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def server(mixtral_sharded_dir: Path) -> Iterator[Server]:
    with serving(mixtral_sharded_dir.parent) as server:
        yield server


def same(far: Checkpoint, near: Checkpoint) -> None:
    """Names, bytes, groups and every tensor are alike."""
    assert far.identity == near.identity
    assert far.bytes_total == near.bytes_total
    assert far.store.files == near.store.files
    assert far.store.index_metadata == near.store.index_metadata
    for name, info in near.tensors.items():
        assert far.tensors[name].spec == info.spec
        assert b"".join(far.tensors[name].raw()) == b"".join(info.raw())
        assert torch.equal(far.read(name), info.read())
    for group in near.groups(extended=True):
        other = far.group(*group.key, extended=True)
        assert torch.equal(other.read(), group.read())
        assert torch.equal(other.read(1, slice(2, 5)), group.read(1, slice(2, 5)))
        assert np.array_equal(other.middle(3, 100), group.middle(3, 100))
    assert [file.name for file in far.beside.files] == [file.name for file in near.beside.files]
    assert summarize(far) == summarize(near)


def test_a_directory_behind_a_server(server: Server, mixtral_sharded_dir: Path) -> None:
    address = f"{server.url}/{mixtral_sharded_dir.name}/"
    same(open_checkpoint(address), open_checkpoint(mixtral_sharded_dir))


def test_a_server_that_lists_nothing(mixtral_sharded_dir: Path, qwen2_moe_dir: Path) -> None:
    for directory in (mixtral_sharded_dir, qwen2_moe_dir):
        with serving(directory, lists=False) as server:
            same(open_checkpoint(server.url), open_checkpoint(directory))


def test_a_hub(mixtral_sharded_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(mixtral_sharded_dir) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        same(open_checkpoint("hf://owner/repo"), open_checkpoint(mixtral_sharded_dir))
        refused("hf://owner/other", "hf://owner/other", "gated", "`hf auth login`")


def test_memory(qwen2_moe_sharded_dir: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in qwen2_moe_sharded_dir.iterdir():
        memory.pipe_file(f"/models/qwen/{file.name}", file.read_bytes())
    same(open_checkpoint("memory://models/qwen"), open_checkpoint(qwen2_moe_sharded_dir))


@pytest.mark.parametrize("family", ["gpt_oss", "llama4", "fp8"])
def test_transposed_fused_and_quantized(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    block = "model.layers.0." + ("feed_forward" if family == "llama4" else "mlp")
    tensors = {f"{block}.router.weight": torch.randn(K, D)}
    if family == "fp8":
        tensors = {f"{block}.gate.weight": torch.randn(K, D)}
        for expert in range(K):
            for name, shape in (("gate", (H, D)), ("up", (H, D)), ("down", (D, H))):
                weight = f"{block}.experts.{expert}.{name}_proj.weight"
                tensors[weight] = torch.randn(*shape).to(torch.float8_e4m3fn)
                tensors[f"{weight}_scale_inv"] = torch.rand(1, 1) + 0.5
    else:
        tensors[f"{block}.experts.gate_up_proj"] = torch.randn(K, D, 2 * H).bfloat16()
        tensors[f"{block}.experts.down_proj"] = torch.randn(K, H, D).bfloat16()
    save_file(tensors, tmp_path / "model.safetensors")
    kind = "deepseek_v3" if family == "fp8" else family
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with serving(tmp_path) as server:
        same(open_checkpoint(server.url), open_checkpoint(tmp_path))


def test_the_middle_of_a_matrix(mixtral_dir: Path, tmp_path: Path) -> None:
    group = open_checkpoint(mixtral_dir).groups()[0]
    out, width = group.shape[1:]
    rows = group.read(rows=slice(40, 72)).flatten(1).float()
    assert np.array_equal(group.middle(32, 32 * width), rows.numpy())
    assert group.middle(32, 5 * width).shape == (K, 5 * width)
    assert group.middle(32, 1).shape == (K, width)
    assert group.middle(2 * out, 10 * out * width).shape == (K, out * width)
    turned = torch.randn(K, D, H)
    tensors = {f"model.layers.0.mlp.experts.{name}": turned for name in ("gate_up_proj",)}
    tensors["model.layers.0.mlp.experts.down_proj"] = torch.randn(K, H // 2, D)
    tensors["model.layers.0.mlp.router.weight"] = torch.randn(K, D)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))
    gate = open_checkpoint(tmp_path).group(0, "gate")
    columns = gate.read()[:, :, 2:4].flatten(1)
    assert np.array_equal(gate.middle(2, 100), columns.numpy())


@pytest.fixture(scope="module")
def mixtral_8x7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes of the real one, 32 layers, 93 GB of holes: it takes no room."""
    directory = tmp_path_factory.mktemp("big")
    hidden, inner, layers, experts = 4096, 14336, 32, 8
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, out in (("q", hidden), ("k", 1024), ("v", 1024), ("o", hidden)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (out, hidden)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (hidden,)
        moe = f"{prefix}.block_sparse_moe"
        shapes[f"{moe}.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            shapes[f"{moe}.experts.{expert}.w1.weight"] = (inner, hidden)
            shapes[f"{moe}.experts.{expert}.w2.weight"] = (hidden, inner)
            shapes[f"{moe}.experts.{expert}.w3.weight"] = (inner, hidden)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (32000, hidden)}
    files = shards({name: TensorSpec(Dtype.BF16, shape) for name, shape in shapes.items()})
    for name, specs in files.items():
        header = encode_header(specs)
        (directory / name).write_bytes(header)
        os.truncate(directory / name, len(header) + sum(spec.nbytes for spec in specs.values()))
    write_index(directory / INDEX, files)
    config = {"model_type": "mixtral", "num_hidden_layers": layers, "num_local_experts": experts}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_the_first_look_at_90_gb_moves_a_few_mb(mixtral_8x7b: Path) -> None:
    assert sum(file.stat().st_blocks * 512 for file in mixtral_8x7b.iterdir()) < 20e6
    with serving(mixtral_8x7b) as server:
        started = time.monotonic()
        summary = summarize(server.url)
        seconds = time.monotonic() - started
        assert summary.bytes_total > 90e9
        assert (summary.moe_layers, summary.experts) == (32, 8)
        assert server.sent < 8e6
        assert server.requests < 1300
        assert seconds < 30  # most of it is this server's


def test_compressed_from_an_address_and_from_a_disk(
    server: Server, mixtral_sharded_dir: Path, tmp_path: Path
) -> None:
    name = mixtral_sharded_dir.name
    address = f"{server.url.replace('//', '//me:my%20word@')}/{name}"
    recipe = load_recipe("quantized-2bit")
    compress(mixtral_sharded_dir, tmp_path / "near", recipe)
    compress(address, tmp_path / "far", recipe)
    near, far = sorted((tmp_path / "near").iterdir()), sorted((tmp_path / "far").iterdir())
    assert [file.name for file in near] == [file.name for file in far]
    for one, other in zip(near, far, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert b"127.0.0.1" not in other.read_bytes()
    assert "Basic bWU6bXkgd29yZA==" in server.logins
    report = verify(tmp_path / "far", address)
    assert report.ok
    assert len(report.groups) == 6


def test_the_commands_take_addresses(
    server: Server,
    mixtral_sharded_dir: Path,
    tmp_path: Path,
) -> None:
    address, out = f"{server.url}/{mixtral_sharded_dir.name}", tmp_path / "packed"
    printed = ders("info", address, "--json").stdout
    assert json.loads(printed)["identity"] == open_checkpoint(mixtral_sharded_dir).identity
    for words in (
        ("plan", address, "--recipe", "quantized-2bit"),
        ("compress", address, out, "--recipe", "quantized-2bit", "--workers", "1"),
        ("verify", out, "--against", address),
        ("analyze", address, "--layers", "1"),
    ):
        done = ders(*words)
        assert done.returncode == 0, done.stderr


def test_a_model_that_is_run_must_be_local(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("one two three")
    address = "https://host/model"
    for words in (
        ("eval", address, "--text", text),
        ("calibrate", address, "-o", tmp_path / "out.safetensors", "--text", text),
    ):
        done = ders(*words)
        assert done.returncode == 1
        assert address in error_of(done)
        assert "download" in error_of(done)


# What goes wrong


def refused(address: str, *facts: str) -> None:
    """An address is refused in one line that states the facts, and no password."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(address)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    for fact in facts:
        assert fact in message


def test_a_server_without_ranges_is_refused(mixtral_8x7b: Path) -> None:
    with serving(mixtral_8x7b, ranges=False) as server:
        source = open_checkpoint(server.url)  # what files begin with can be had
        with raises_saying(CheckpointError, server.url, "ranges", "download"):
            _ = source.identity
        assert server.sent < 200e6


def test_a_connection_that_breaks_is_tried_again(server: Server, mixtral_sharded_dir: Path) -> None:
    server.fails = 2
    assert open_checkpoint(f"{server.url}/{mixtral_sharded_dir.name}").num_experts == K
    assert not server.fails


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        (401, ["HTTP 401", "credentials"]),
        (403, ["HTTP 403", "credentials"]),
        (404, ["does not exist", "check the address"]),
        (429, ["HTTP 429", "minutes"]),
        (503, ["HTTP 503", "try again later"]),
    ],
)
def test_answers_that_are_none(tmp_path: Path, status: int, facts: list[str]) -> None:
    with serving(tmp_path, status=status) as server:
        address = f"{server.url.replace('//', '//me:secret@')}/models/mine"
        refused(address, "/models/mine", *facts)


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/model"
        refused(address, address, "cannot be reached", "network")


def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"http://127.0.0.1:{mute.getsockname()[1]}/model"
        refused(address, address, "in time", "network")


def test_a_file_that_was_cut(mixtral_dir: Path, tmp_path: Path) -> None:
    for file in mixtral_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with serving(tmp_path) as server:
        source = open_checkpoint(server.url)
        os.truncate(tmp_path / "model.safetensors", 5000)
        with raises_saying(CheckpointError, "model.safetensors", "cannot be read"):
            source.groups()[-1].read()
        refused(server.url, "model.safetensors", "truncated")


def test_an_index_that_leads_elsewhere(mixtral_sharded_dir: Path, tmp_path: Path) -> None:
    for file in mixtral_sharded_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    for name in ("..%2Fother.safetensors", "../other.safetensors", "x?y", "..", "//host/x"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with serving(tmp_path) as server:
            refused(server.url, index.name, repr(name), "outside")


@pytest.mark.parametrize(
    ("address", "facts"),
    [
        ("hf://owner/repo", ["hf://owner/repo", "HF_HUB_OFFLINE"]),
        ("hf://owner/repo@v1.0", ["hf://owner/repo@v1.0", "cannot be reached"]),
        ("hf://owner", ["hf://owner", "cannot be read"]),
        ("s3://bucket/model", ["s3://", "not installed", "s3fs"]),
        ("nothing://like/this", ["nothing://", "protocol", "https://"]),
        ("file:///etc", ["plain path"]),
        ("ZIP://a.zip", ["plain path"]),
        ("simplecache::https://host/x", ["chains", "::"]),
        ("zip://x::https://host/x.zip", ["chains", "::"]),
        ("https://host/x?token=secret", ["a query"]),
        ("ftp://me:secret@host/x", ["credentials", "ftp://"]),
        ("memory://not/there", ["memory://not/there", "does not exist"]),
    ],
)
def test_addresses_that_are_refused(address: str, facts: list[str]) -> None:
    refused(address, *facts)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", nobody)
        refused("hf://owner/repo", "hf://owner/repo", "cannot be reached")


def test_a_file_is_no_directory() -> None:
    fsspec.filesystem("memory").pipe_file("/lonely/model.safetensors", b"x")
    refused("memory://lonely/model.safetensors", "model.safetensors", "is a file")


def test_a_remote_file_that_is_written_is_noticed(
    mixtral_sharded_dir: Path, tmp_path: Path
) -> None:
    """By the date that this server tells; nothing is read for it."""
    source = Path(shutil.copytree(mixtral_sharded_dir, tmp_path / "files" / "source"))
    for file in source.iterdir():
        os.utime(file, (1_600_000_000, 1_600_000_000))
    with serving(source.parent) as server:
        store = TensorStore.open(f"{server.url}/source")
        again = TensorStore.open(f"{server.url}/source")
        assert store.version == again.version
        sent = server.sent
        store.check_unchanged()
        assert server.sent - sent < 1000 * len(store.stamps)
        change_unseen(source, "lm_head.weight")
        with raises_saying(CheckpointError, server.url, "written"):
            store.check_unchanged()
        assert TensorStore.open(f"{server.url}/source").version != store.version


def test_a_hub_file_is_known_by_its_hash(mixtral_sharded_dir: Path) -> None:
    class Hub:
        protocol = "hf"
        blob = "one"

        def invalidate_cache(self, key: str) -> None:
            self.blob = "two"

        def info(self, key: str) -> dict[str, Any]:
            return {"size": 5, "type": "file", "blob_id": self.blob, "lfs": None}

    path: Any = SimpleNamespace(fs=Hub(), path="owner/repo/a")
    assert remote.size_and_mark(path) == (5, "blob_id=one")
    assert remote.size_and_mark(path) == (5, "blob_id=one")
    assert remote.size_and_mark(path, refresh=True) == (5, "blob_id=two")
