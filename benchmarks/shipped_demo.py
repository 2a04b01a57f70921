"""Make the demo that comes with the package, `ders_core/demo/trained`.

A small dense parent is trained on the text of Python's standard library: code, prose and tables.
Then its FFNs are copied into 8 experts, and experts and routers alone are trained further, slowly,
on two more kinds of text that the parent has not seen: syntax trees, and the instructions that code
is compiled to. So the MoE has all other tensors of its parent, and packed with the parent's FFNs as
bases it holds the parent too. It is packed with `lossless`, and must keep what a demo promises, or
nothing is replaced.

    OMP_NUM_THREADS=1 python benchmarks/shipped_demo.py WORK > benchmarks/results/shipped-demo.txt

Trained models stay in WORK, each with what its training printed, so that a run that was cut short
goes on. A quiet core needs about half an hour. After a change of the packed form, the shipped demo
is packed again without training; every bit of it and of its parent is compared:

    python benchmarks/shipped_demo.py WORK --again >> benchmarks/results/shipped-demo.txt
"""

from __future__ import annotations

import argparse
import ast
import dis
import gzip
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import CodeType
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM

import ders_core
from ders_core.compute.device import device_label
from ders_core.demo.build import versions
from ders_core.demo.corpus import Corpus, joined, read_corpus
from ders_core.demo.measured import mean_cosine, measure
from ders_core.demo.models import Shape, dense_model, save_model, upcycle
from ders_core.demo.result import CALIBRATION, DENSE, FIGURES, HELD_OUT, MOE
from ders_core.demo.tokens import Stream, corpus_tokenizer
from ders_core.demo.train import train
from ders_core.demo.unpack import GZ, TRAINED, parent_tensors, unpack_demo
from ders_core.files.json_object import read_json
from ders_core.files.writer import write_json
from ders_core.packed.manifest import FORMAT_VERSION
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe
from ders_core.units import bytes_text

SHAPE = Shape(hidden=128, intermediate=384, heads=4, kv_heads=2)
SEED, BATCH, WINDOW, TEXT, TOKENIZER_TEXT = 0, 6, 256, 150_000, 600_000
DENSE_STEPS, DENSE_RATE = 2400, 4e-3
MOE_STEPS, MOE_BATCH, EXPERT_RATE, ROUTER_RATE = 360, 5, 3e-4, 1e-3
MOST_TEXT = 600_000
"""Characters of each kind that the experts are trained on."""

LEAST_COSINE, LEAST_LOSS, MOST_BYTES = 0.99, 0.10, 8_000_000
"""Of a pair of experts; of perplexity, when the deltas are removed; of everything shipped."""

LOG = "training.txt"
"""In the directory of a trained model: what its training printed."""

PACKED = "packed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="directory of trained models")
    parser.add_argument("--again", action="store_true", help="pack what is shipped once more")
    options = parser.parse_args()
    work: Path = options.work
    if options.again:
        pack_again(work)
        return
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(
        f"DeRS {ders_core.__version__}, {device_label('cpu')}, one thread; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
    )
    print(f"{SHAPE}\nseed {SEED}, batches of {BATCH} windows of {WINDOW} tokens, float32")
    corpus = read_corpus()
    if not (work / DENSE / LOG).exists():
        train_parent(corpus, work / DENSE)
    if not (work / MOE / LOG).exists():
        train_experts(more_kinds(corpus.train, MOST_TEXT), work / DENSE, work / MOE)
    for name, rates in (
        (DENSE, f"{DENSE_STEPS} steps, rate {DENSE_RATE}"),
        (
            MOE,
            f"{MOE_STEPS} steps of experts and routers, batches of {MOE_BATCH}, "
            f"rates {EXPERT_RATE} and {ROUTER_RATE}",
        ),
    ):
        print(f"\n## {name}: {rates}\n{(work / name / LOG).read_text(encoding='utf-8').rstrip()}")
    for name, texts in ((CALIBRATION, corpus.calibration), (HELD_OUT, corpus.heldout)):
        (work / name).write_text(joined(more_kinds(texts, TEXT), TEXT), encoding="utf-8")
    figures = measured(work)
    pack(work)
    ship(work, figures)


def pack_again(work: Path) -> None:
    """Ship the models that are shipped, packed in the present form."""
    print(f"\n# DeRS {ders_core.__version__}: packed again, version {FORMAT_VERSION} of the form")
    shutil.rmtree(work, ignore_errors=True)
    before = PackedCheckpoint(TRAINED / MOE).manifest.source.identity
    figures = read_json(TRAINED / FIGURES)
    unpack_demo(work)
    pack(work)
    if PackedCheckpoint(work / PACKED).manifest.source.identity != before:
        sys.exit("the packed MoE has another identity")
    ship(work, figures)


def train_parent(corpus: Corpus, place: Path) -> None:
    """Train the dense parent from nothing."""
    torch.manual_seed(SEED)
    tokenizer = corpus_tokenizer(corpus.train, TOKENIZER_TEXT, SHAPE.vocabulary)
    stream = Stream(tokenizer, corpus.train, batch=BATCH, window=WINDOW, seed=SEED)
    model = dense_model(SHAPE, WINDOW)
    lines = Lines(100)
    groups = [{"params": list(model.parameters()), "lr": DENSE_RATE}]
    train(model, stream, steps=DENSE_STEPS, groups=groups, step_done=lines.add)
    save_model(model, tokenizer, place)
    lines.write(place)


def more_kinds(texts: dict[str, list[str]], most: int) -> dict[str, list[str]]:
    """With the syntax trees and the instructions of the code as two more kinds; of each kind `most`
    characters."""
    kinds = {
        **texts,
        "trees": map(syntax_trees, texts["code"]),
        "instructions": map(instructions, texts["code"]),
    }
    return {kind: list(up_to(most, pieces)) for kind, pieces in kinds.items()}


def up_to(most: int, texts: Iterable[str]) -> Iterator[str]:
    """Texts until they have `most` characters."""
    for text in texts:
        yield text
        most -= len(text)
        if most <= 0:
            return


def syntax_trees(code: str) -> str:
    """A line for each function and class of a module."""
    shown = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return "\n".join(ast.dump(node) for node in ast.parse(code).body if isinstance(node, shown))


def instructions(code: str) -> str:
    """The names and arguments of a module's instructions, a line each."""
    lines: list[str] = []
    waiting = [compile(code, "module", "exec")]
    while waiting:
        compiled = waiting.pop()
        lines.append(f"{compiled.co_name}:")
        for step in dis.get_instructions(compiled):
            shown = step.argrepr if len(step.argrepr) < 80 else "..."
            if isinstance(step.argval, CodeType):
                waiting.append(step.argval)
                shown = step.argval.co_name  # not its address
            lines.append(f"  {step.offset:4} {step.opname} {shown}".rstrip())
    return "\n".join(lines)


def train_experts(train_texts: dict[str, list[str]], parent: Path, place: Path) -> None:
    """Upcycle the saved parent, and train experts and routers alone."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    stream = Stream(tokenizer, train_texts, batch=MOE_BATCH, window=WINDOW, seed=SEED + 1)
    dense = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32).eval()
    model = upcycle(dense, SHAPE, stream, SEED)
    model.requires_grad_(False)
    groups: list[dict[str, Any]] = []
    for part, rate in ((".mlp.experts.", EXPERT_RATE), (".mlp.gate.", ROUTER_RATE)):
        weights = [weight for name, weight in model.named_parameters() if part in name]
        groups.append({"params": [weight.requires_grad_() for weight in weights], "lr": rate})
    model.config.output_router_logits = True  # the loss includes the balancing term
    lines = Lines(60, model)
    train(model, stream, steps=MOE_STEPS, groups=groups, step_done=lines.add)
    model.config.output_router_logits = False
    save_model(model, tokenizer, place)
    lines.write(place)


class Lines:
    """The mean loss of `every` so many steps, the seconds so far, and of an MoE the mean cosine of
    its experts; also on stderr."""

    def __init__(self, every: int, moe: MixtralForCausalLM | None = None) -> None:
        self._every, self._moe = every, moe
        self._losses: list[float] = []
        self._lines: list[str] = []
        self._started = time.monotonic()

    def add(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        if step % self._every == 0:
            mean = sum(self._losses[-self._every :]) / self._every
            seconds = time.monotonic() - self._started
            line = f"step {step:5}: loss {mean:.4f}, {seconds:5.0f} s"
            if self._moe is not None:
                line += f", cosine {mean_cosine(self._moe):.5f}"
            self._lines.append(line)
            print(self._lines[-1], file=sys.stderr, flush=True)

    def write(self, place: Path) -> None:
        (place / LOG).write_text("\n".join(self._lines) + "\n", encoding="utf-8")


def measured(work: Path) -> dict[str, Any]:
    """The figures of the saved models, on the whole held-out text. Ends the run if they break a
    promise."""
    text = (work / HELD_OUT).read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(work / MOE)
    perplexities, cosine = measure(
        work, tokenizer, text, window=WINDOW, batch=BATCH, batch_done=lambda *_: None
    )
    moe, removed = perplexities["moe"], perplexities["base_only"]
    print("\n## Held-out perplexities, and the mean cosine of two experts")
    for name, value in perplexities.items():
        print(f"{name:9} {value:.4f}")
    print(f"removing the deltas costs {removed / moe - 1:.1%}; cosine {cosine:.5f}")
    promises = {
        "the experts are close": cosine >= LEAST_COSINE,
        "the deltas matter": removed >= (1 + LEAST_LOSS) * moe,
        "the MoE is better than its parent": moe < perplexities["dense"],
    }
    for promise, kept in promises.items():
        print(f"{promise}: {'yes' if kept else 'NO'}")
    if not all(promises.values()):
        sys.exit("a promise is broken; nothing is shipped")
    return {
        "seed": SEED,
        "perplexities": perplexities,
        "mean_cosine": cosine,
        "steps": {"dense": DENSE_STEPS, "moe": MOE_STEPS},
        "shape": asdict(SHAPE),
        "versions": versions(),
    }


def pack(work: Path) -> None:
    """Pack the MoE with its parent as base, and check every bit of both."""
    shutil.rmtree(work / PACKED, ignore_errors=True)
    recipe = f"name: lossless\nbase: {{dense: {work / DENSE}}}\nrules: [{{codec: lossless}}]\n"
    report = compress(work / MOE, work / PACKED, Recipe.from_yaml(recipe))
    print(
        f"\n## Packed\n{bytes_text(report.bytes_before)} to {bytes_text(report.bytes_after)} "
        f"({report.ratio:.1%})"
    )
    if not verify(work / PACKED, work / MOE).ok:
        sys.exit("the packed MoE is not the trained one")
    parent = load_file(work / DENSE / "model.safetensors")
    held = parent_tensors(PackedCheckpoint(work / PACKED))
    if held.keys() != parent.keys() or not all(
        torch.equal(held[name].read(), weight) for name, weight in parent.items()
    ):
        sys.exit("the packed MoE does not hold its parent")


def ship(work: Path, figures: dict[str, Any]) -> None:
    """Replace what the package ships, if it is small enough."""
    made = work / "trained"
    shutil.rmtree(made, ignore_errors=True)
    without_log: Callable[..., set[str]] = shutil.ignore_patterns(LOG)
    shutil.copytree(work / PACKED, made / MOE, ignore=without_log)
    (made / DENSE).mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(work / DENSE / name, made / DENSE / name)
    for name in (CALIBRATION, HELD_OUT):
        packed = gzip.compress((work / name).read_bytes(), 9, mtime=0)
        (made / f"{name}{GZ}").write_bytes(packed)
    write_json(made / FIGURES, figures)
    sizes = {file: file.stat().st_size for file in sorted(made.rglob("*")) if file.is_file()}
    for file, size in sizes.items():
        print(f"{size:9} {file.relative_to(made)}")
    print(f"{sum(sizes.values()):9} of at most {MOST_BYTES}")
    if sum(sizes.values()) > MOST_BYTES:
        sys.exit("that is too much; nothing is shipped")
    for file in sizes:
        place = TRAINED / file.relative_to(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


if __name__ == "__main__":
    main()
