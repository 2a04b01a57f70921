"""What `dtype: auto` gains: evaluation and calibration in it against bfloat16, in the same run.

Makes Mixtral-shaped models in bfloat16, random but for experts that share a start, of the demo's
sizes and of wider ones. Each is evaluated against itself and calibrated in bfloat16 and in `auto`,
in turn. On a CPU without bfloat16 instructions `auto` is float32; elsewhere both are the same.
Run: `python benchmarks/precision.py [--tokens N] [--rounds N]`.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.utils.logging import disable_progress_bar

import ders_core
from ders_core.calibrate import calibrate
from ders_core.compute.device import device_label
from ders_core.compute.precision import dtype_label
from ders_core.demo.corpus import joined, read_corpus
from ders_core.demo.models import Shape
from ders_core.demo.tokens import train_tokenizer
from ders_core.evaluate import evaluate
from ders_core.hf import describe, shared_dtype
from ders_core.units import bytes_text

SHAPES = {
    "demo": Shape(),
    "wider": Shape(hidden=512, intermediate=1408, heads=8, kv_heads=4),
}


def make_model(directory: Path, shape: Shape, text: str) -> Path:
    """A model and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([text], shape.vocabulary)
    config = MixtralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        max_position_embeddings=512,
    )
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.copy_(weight[:1] + 0.1 * weight)
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


Work = Callable[[torch.dtype | None, int], object]


def seconds_of(work: Work, dtype: torch.dtype | None, number: int) -> float:
    begun = time.perf_counter()
    work(dtype, number)
    return time.perf_counter() - begun


def measure(model: Path, text: Path, place: Path, tokens: int, rounds: int) -> None:
    """Print a line for each kind of work."""
    facts = describe(model)
    chosen = shared_dtype([facts], torch.device("cpu")) or facts.dtype
    kinds: dict[str, Work] = {
        "evaluate": lambda dtype, _: evaluate(
            model, model, text=text, max_tokens=tokens, dtype=dtype
        ),
        "calibrate": lambda dtype, number: calibrate(
            model,
            place / f"{model.name}-{number}.safetensors",
            text=text,
            max_tokens=tokens,
            dtype=dtype,
        ),
    }
    number = 0
    for name, work in kinds.items():
        taken: dict[torch.dtype | None, list[float]] = {torch.bfloat16: [], None: []}
        for _ in range(rounds):
            for dtype, times in taken.items():
                number += 1
                times.append(seconds_of(work, dtype, number))
        slow, fast = median(taken[torch.bfloat16]), median(taken[None])
        print(
            f"{model.name:6}  {bytes_text(2 * facts.values):>9}  "
            f"{bytes_text(chosen.itemsize * facts.values):>9}  {name:9}  {slow:8.2f}  {fast:8.2f}  "
            f"{slow / fast:5.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    disable_progress_bar()
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        text = place / "text.txt"
        text.write_text(joined(read_corpus().heldout, 150_000), encoding="utf-8")
        models = [
            make_model(place / name, shape, text.read_text(encoding="utf-8"))
            for name, shape in SHAPES.items()
        ]
        facts = describe(models[0])
        chosen = dtype_label(shared_dtype([facts], cpu) or facts.dtype)
        print(
            f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}, {device_label(cpu)}; auto is {chosen}; "
            f"{options.tokens} tokens, medians of {options.rounds}"
        )
        print(
            "model    bfloat16       auto  work       bfloat16 s  auto s  bfloat16 / auto\n"
            "         (bytes of the weights in memory)"
        )
        for model in models:
            measure(model, text, place, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
