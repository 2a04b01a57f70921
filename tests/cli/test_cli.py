"""The `ders` command as a user meets it: exit statuses, JSON, one line an error."""

from __future__ import annotations

import gc
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.shell import ders

from ders_core.cli.commands import COMMANDS
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.units import bytes_text


def as_json(*words: str | Path) -> Any:
    done = ders(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("cli") / "packed"
    done = ders("compress", mixtral_dir, out, "--recipe", "mixed", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "% of original" in done.stdout
    return out


@pytest.mark.parametrize(
    ("fields", "is_exact", "loses"),
    [
        ("rules: [{codec: quantized, bits: 2}]", True, True),
        ("rules: [{codec: entropy, bits: 2}]", False, True),
        ("rules: [{codec: lossless}]", False, False),
        ("rules: [{codec: keep}]", True, False),
        ("rules: [{codec: lossless}]\nbase_codec: {codec: quantized, bits: 4}", False, False),
        ("rules: [{codec: keep}]\nothers: {codec: quantized, bits: 8}", True, True),
    ],
)
def test_a_plan_of_headers_says_what_it_does_not_know(
    mixtral_dir: Path, tmp_path: Path, fields: str, is_exact: bool, loses: bool
) -> None:
    """Whether lossless would take less, and how much less than the most it will be."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: r\n{fields}\n")
    told = ders("plan", mixtral_dir, "--recipe", file).stdout
    assert ("at most" not in told) == ("--whole" not in told) == is_exact
    assert ("codec lossless would take less depends" in told) == loses


def test_help_has_the_summary_of_every_command() -> None:
    """It is written without importing commands; each says the same by its docstring."""
    told = " ".join(ders("--help").stdout.split())
    for word, entry in COMMANDS.items():
        assert f"{word} {entry.summary}" in told
        command = getattr(import_module(f"ders_core.cli.{entry.module}"), entry.function)
        assert entry.summary == " ".join(command.__doc__.partition("\n\n")[0].split())


def test_a_mistyped_command_is_told_which_are_like_it() -> None:
    done = ders("compres", "X")
    assert done.returncode == 2
    assert "'compres'" in done.stderr
    assert "'compress'?" in done.stderr
    assert "?" not in ders("nonsense").stderr.splitlines()[-1]


def test_a_command_leaves_the_collector_of_cycles_as_it_was(tmp_path: Path) -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        ders("info", tmp_path / "nowhere")
        assert gc.get_threshold() == (700, 10, 10)
    finally:
        gc.set_threshold(*thresholds)


def test_info(qwen2_moe_dir: Path) -> None:
    info = as_json("info", qwen2_moe_dir)
    checkpoint = open_checkpoint(qwen2_moe_dir)
    assert info["family"] == "qwen2_moe"
    assert (info["layers"], info["moe_layers"], info["experts"], info["top_k"]) == (3, 2, 6, 2)
    assert info["dtype"] == "BF16"
    assert info["bytes_total"] == sum(f.stat().st_size for f in qwen2_moe_dir.glob("*.safetensors"))
    assert info["bytes_experts"] == checkpoint.bytes_experts
    assert info["expert_share"] == pytest.approx(info["bytes_experts"] / info["bytes_total"])
    assert info["upcycled"]["verdict"] == "upcycled"
    assert info["upcycled"]["mean_cosine"] > 0.9
    shared = [
        tensor for layer in checkpoint.moe_layers for tensor in checkpoint.shared_expert(layer)
    ]
    assert shared
    assert info["shared"].startswith(bytes_text(sum(tensor.nbytes for tensor in shared)))
    printed = ders("info", qwen2_moe_dir).stdout
    assert "qwen2_moe" in printed
    assert "6 per layer, top-2" in printed
    assert info["shared"] in printed


def test_plan_opens_the_dense_parent(mixtral_dir: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    for parent in (tmp_path / "nowhere", mixtral_dir):
        recipe.write_text(
            f"name: r\nbase: {{dense: {parent}}}\nrules: [{{codec: quantized, bits: 2}}]"
        )
        refused = ders("plan", mixtral_dir, "--recipe", recipe)
        assert refused.returncode == 1
        assert refused.stderr.startswith("ders: ")
        assert refused.stderr.count("\n") == 1


def test_plan_tells_the_bytes_that_compress_writes(
    mixtral_dir: Path, packed: Path, tmp_path: Path
) -> None:
    plan = as_json("plan", mixtral_dir, "--recipe", "mixed")
    written = sum(file.stat().st_size for file in packed.glob("*.safetensors"))
    assert plan["exact"] is False  # magnitude's positions take what the data want
    assert 0.95 * plan["bytes_after"] < written <= plan["bytes_after"]
    assert plan["ratio"] == pytest.approx(plan["bytes_after"] / plan["bytes_before"])
    exact = as_json("plan", mixtral_dir, "--recipe", "quantized-2bit")
    assert exact["exact"] is True
    done = ders("compress", mixtral_dir, tmp_path / "two", "--recipe", "quantized-2bit")
    assert done.returncode == 0, done.stderr
    files = (tmp_path / "two").glob("*.safetensors")
    assert exact["bytes_after"] == sum(file.stat().st_size for file in files)
    group = plan["groups"][0]
    assert {"layer", "projection", "codec", "bytes_before", "bytes_after"} <= group.keys()
    assert len(plan["groups"]) == 6


def test_verify_and_synthesize(mixtral_dir: Path, packed: Path, tmp_path: Path) -> None:
    report = as_json("verify", packed, "--against", mixtral_dir)
    assert report["ok"] is True
    group = report["groups"][0]
    errors = {"rel_error_delta", "rel_error_weight", "gain", "noise"}
    assert {"layer", "projection", *errors} == group.keys()
    shown = ders("verify", packed, "--against", mixtral_dir)
    assert shown.returncode == 0, shown.stderr
    for known in (f"{group['gain']:.3g}", f"{group['noise']:.3g}", "gain", "noise"):
        assert known in shown.stdout
    checked = ders("verify", packed)
    assert checked.returncode == 0, checked.stderr
    assert f"all {len(PackedCheckpoint(packed).store.tensors)} tensors" in checked.stdout
    done = ders("synthesize", packed, tmp_path / "dense")
    assert done.returncode == 0
    assert open_checkpoint(tmp_path / "dense").num_experts == 4


def test_eval(mixtral_dir: Path, packed: Path, tmp_path: Path, tiny_text: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny_text, encoding="utf-8")
    quality = as_json(
        "eval", packed, "--reference", mixtral_dir, "--text", text, "--max-tokens", "600"
    )
    assert quality["tokens"] == 511
    assert quality["kl"] > 0
    begin, rest = tmp_path / "begin.jsonl", tmp_path / "rest.txt"
    line, _, later = tiny_text.partition("\n")
    begin.write_text(json.dumps({"text": line}) + "\n", encoding="utf-8")
    rest.write_text(later, encoding="utf-8")
    again = as_json("eval", packed, "--text", begin, "--text", rest, "--max-tokens", "600")
    assert again["perplexity"] == quality["perplexity"]
    for key in ("perplexity", "reference_perplexity", "top1_agreement", "routing_agreement"):
        assert quality[key] > 0
    named = ("--text", f"code={text}", "--text", f"prose={text}", "--max-tokens", "120")
    shown = ders("eval", packed, "--reference", mixtral_dir, *named)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("code ", "prose "))] == [
        "code",
        "prose",
    ]
    worst = lines[lines.index("the tokens that changed most") + 2 :]
    assert len(worst) == 10
    assert float(worst[0].split()[0]) >= float(worst[-1].split()[0]) > 0


def test_analyze_writes_reports(mixtral_dir: Path, tmp_path: Path) -> None:
    for name in ("a.html", "a.json", "a.parquet"):
        done = ders("analyze", mixtral_dir, "-o", tmp_path / name, "--layers", "1", "--spectra")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).stat().st_size > 1000
    assert json.loads((tmp_path / "a.json").read_text())["groups"][0]["layer"] == 1
    again = ders("analyze", mixtral_dir, "-o", tmp_path / "a.html")
    assert again.returncode == 1
    assert ders("analyze", mixtral_dir, "-o", tmp_path / "a.txt").returncode == 2
    assert ders("analyze", mixtral_dir, "--layers", "3-1").returncode == 2


def test_export_with_measured_quality(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(
        json.dumps(
            {
                "tokens": 10,
                "perplexity": 12.5,
                "reference_perplexity": 12.0,
                "kl": 0.25,
                "top1_agreement": 0.9,
                "routing_agreement": None,
            }
        )
    )
    done = ders(
        "export", packed, tmp_path / "out", "--format", "dense", "--quality", tmp_path / "q.json"
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "12.5" in card
    assert "0.25" in card
    assert ders("export", packed, tmp_path / "b", "--format", "zip").returncode == 2


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["info", "NOWHERE"], ["NOWHERE", "does not exist"]),
        (["plan", "CKPT", "--recipe", "no-such-preset"], ["no-such-preset", "quantized-2bit"]),
        (["compress", "CKPT", "CKPT", "--recipe", "keep"], ["exists already"]),
        (["compress", "CKPT", "out", "--recipe", "keep", "--device", "cuda"], ["CUDA device"]),
        (["verify", "CKPT"], ["ders_manifest.json"]),
        (["eval", "CKPT", "--text", "NOWHERE"], ["NOWHERE", "cannot be read"]),
    ],
)
def test_errors_are_one_line_and_status_one(
    words: list[str], facts: list[str], mixtral_dir: Path, tmp_path: Path
) -> None:
    done = ders(*(str(mixtral_dir) if word == "CKPT" else word for word in words), cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ders: ")]
    assert done.returncode == 1
    assert len(lines) == 1
    for fact in facts:
        assert fact in lines[0]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_usage_is_status_two(mixtral_dir: Path) -> None:
    assert ders("compress", mixtral_dir).returncode == 2
    assert ders("nonsense").returncode == 2
    assert ders("--version").stdout.startswith("ders-studio ")
