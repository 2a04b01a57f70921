"""Files that were damaged or forged: every reader says so in one sentence, in bounded time.

Each target is a file of a checkpoint, an analysis, a patch or a choice of the user; it is damaged
in many ways, each from a seed, and then read by everything that reads it. Weights that are not the
ones that were written never pass `verify`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from support.bounded_time import at_most
from support.messages import raises_saying
from support.mutations import (
    Damage,
    damaged_bytes,
    damaged_json,
    damaged_weights,
    damaged_yaml,
)
from support.shell import ders

from ders_core.analysis import analyze
from ders_core.analysis.summary import summarize
from ders_core.analysis.tables import COLUMNS, META, Analysis
from ders_core.checkpoint import dense_ffns
from ders_core.checkpoint.layouts import LAYOUT_FILE, read_layouts
from ders_core.errors import CheckpointError, DersError, OutputError
from ders_core.files.header import read_header
from ders_core.files.model_files import INDEX, SINGLE
from ders_core.files.output import STATE, output_directory
from ders_core.files.store import PATCH_FILE, TensorStore
from ders_core.files.texts import read_documents
from ders_core.hf.classes import named_class
from ders_core.packed.manifest import MANIFEST
from ders_core.packed.open import is_packed, open_checkpoint
from ders_core.packed.patch import patch_problems
from ders_core.pipeline.calibration import Calibration, write_calibration
from ders_core.pipeline.card import CARD, front_matter, read_card
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.quality import read_quality
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, load_recipe
from ders_core.upcycle import DenseModel, load_config

SECONDS = 30
"""For one input; it takes a hundredth of a second."""

EXPERTS, WIDTH, INNER = 3, 8, 16

RECIPE = """\
version: 1
name: three codecs
seed: 5
base: mean
rules:
  - {codec: quantized, bits: 2, group_size: 8}
  - layers: "1"
    projections: [up]
    codec: chain
    stages: [{codec: lowrank, rank: 2}, {codec: sparse, drop_rate: 0.9, method: magnitude}]
  - {projections: down, experts: 0-1, codec: entropy, bits: 1.5}
"""

UPCYCLE = """\
version: 1
name: mine
experts: 4
top_k: 2
layers: 0-1
forms:
  - {form: lowrank, rank: 4}
  - {projections: [down], form: sparse, drop_rate: 0.9}
router: {init: random, std: 0.02}
train: ["*.self_attn.*"]
data: {texts: [a.txt, b.jsonl], heldout: c.txt, window: 64}
training: {steps: 3, learning_rate: 1.0e-4, warmup: 1}
"""

LAYOUT = """\
- family: mine
  models: [odd]
  block: "{stack}.{layer}.mlp"
  experts:
    "experts.{expert}.{any}_one.weight": up
    "experts.{expert}.w2.weight": {holds: down, axes: out in}
    "experts.{expert}.w1.weight": gate
    "experts.{expert}.w3.weight": up
  router: [gate.weight, router]
  shared: {shared.w1.weight: gate}
"""

CHAT = (
    '{"text": "One line.\\nAnd more."}\n'
    '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}\n'
)

CARD_TEXT = "---\nlicense: mit\ntags: [moe, x]\ndate: 2024-01-01\nbase_model: a/b\n---\n# A card\n"


@dataclass(frozen=True)
class Target:
    """file: relative to the tree. read: everything that reads it, given the tree."""

    file: str
    damage: Damage
    read: Callable[[Path], None]
    refuses: bool = True
    """Whether anything that is wrong with the file is a reason to refuse."""
    every: int = 1
    """One of so many seeds is tried, where reading is slow."""


# What reads


def look(directory: Path) -> None:
    """`ders info` and `ders plan`, and what the pages show."""
    checkpoint = open_checkpoint(directory)
    assert json.dumps(summarize(checkpoint).to_dict(), ensure_ascii=False).encode()
    planned = resolve(Recipe.from_yaml(RECIPE), checkpoint)
    assert json.dumps(planned.to_dict(), ensure_ascii=False).encode()


def look_by_command(directory: Path) -> None:
    for words in (["info", directory], ["info", directory, "--json"]):
        done = ders(*words)
        assert (done.stdout + done.stderr).encode()
        assert done.returncode in (0, 1)


def read_original(tree: Path) -> None:
    look_by_command(tree / "original")
    look(tree / "original")


def read_sharded(tree: Path) -> None:
    look(tree / "sharded")


def read_weights(tree: Path) -> None:
    dense_ffns(TensorStore.open(tree / "original").specs)
    look(tree / "original")


def read_dense_config(tree: Path) -> None:
    dense = DenseModel.open(tree / "dense")
    assert min(dense.layers, dense.hidden, dense.intermediate) >= 0
    assert isinstance(dense.family, str)
    named_class(dense.config)
    assert dense.parameters > 0


def read_packed(tree: Path) -> None:
    is_packed(tree / "packed")
    try:
        verification = verify(tree / "packed", tree / "original")
        assert all(map(is_line, verification.problems))
        if verification.ok:
            assert_intact(tree)
    finally:
        look(tree / "packed")


def synthesize_packed(tree: Path) -> None:
    out = tree / "again"
    try:
        synthesize(tree / "packed", out)
    finally:
        left = [out, out.with_name("again.partial")]
        assert not left[1].exists()
        shutil.rmtree(out, ignore_errors=True)


def read_manifest(tree: Path) -> None:
    read_packed(tree)
    synthesize_packed(tree)


def read_layout(tree: Path) -> None:
    try:
        read_layouts(tree / "original" / LAYOUT_FILE)
    finally:
        look(tree / "original")


def read_recipe(tree: Path) -> None:
    recipe = load_recipe(tree / "recipe.yaml")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    resolve(recipe, open_checkpoint(tree / "original"))


def read_upcycle(tree: Path) -> None:
    config = load_config(tree / "upcycle.yaml")
    assert config.label
    assert config.to_yaml().encode()
    config.chosen_layers(2)


def read_patch(tree: Path) -> None:
    assert all(map(is_line, patch_problems(tree / "patch")))


def read_analysis(tree: Path) -> None:
    analysis = Analysis.load(tree / "analysis")
    assert analysis.verdict.sentence
    assert analysis.missing_layers >= 0
    for key in analysis.group_keys():
        assert analysis.about_clusters(*key)
        analysis.rows_of(*key)
    assert analysis.to_json().encode()


def read_state(tree: Path) -> None:
    """An unfinished output is there, whatever it says of itself."""
    out = tree / "begun"
    for work, resume in (({"recipe": 1}, False), ({"recipe": 1}, True)):
        with raises_saying(OutputError, "begun"), output_directory(out, work=work, resume=resume):
            pass


def read_calibration(tree: Path) -> None:
    calibration = Calibration.open(tree / "calibration.safetensors")
    checkpoint = open_checkpoint(tree / "original")
    calibration.check(checkpoint)
    for group in checkpoint.groups():
        calibration.moments(group.layer, group.projection)
        calibration.tokens_per_expert(group)
        calibration.curvatures(group)


def read_measured(tree: Path) -> None:
    assert read_quality(tree / "quality.json").to_dict()


def read_texts(tree: Path) -> None:
    for document in read_documents(tree / "texts.jsonl"):
        assert document.where


def read_cards(tree: Path) -> None:
    front_matter(read_card(tree / "packed"))
    synthesize_packed(tree)


TARGETS: Mapping[str, Target] = {
    "config": Target("original/config.json", damaged_json, read_original, every=3),
    "weights": Target(f"original/{SINGLE}", damaged_weights, read_weights),
    "dense config": Target("dense/config.json", damaged_json, read_dense_config),
    "dense weights": Target(f"dense/{SINGLE}", damaged_weights, read_dense_config),
    "index": Target(f"sharded/{INDEX}", damaged_json, read_sharded),
    "layout": Target(f"original/{LAYOUT_FILE}", damaged_yaml, read_layout),
    "packed config": Target("packed/config.json", damaged_json, read_packed, every=2),
    "packed weights": Target(f"packed/{SINGLE}", damaged_weights, read_packed),
    "manifest": Target(f"packed/{MANIFEST}", damaged_json, read_manifest),
    "patch": Target(f"patch/{PATCH_FILE}", damaged_json, read_patch),
    "patch weights": Target("patch/patch.safetensors", damaged_weights, read_patch),
    "recipe": Target("recipe.yaml", damaged_yaml, read_recipe),
    "upcycle": Target("upcycle.yaml", damaged_yaml, read_upcycle),
    "meta": Target(f"analysis/{META}", damaged_json, read_analysis),
    **{
        f"table {name}": Target(f"analysis/{name}.parquet", damaged_bytes, read_analysis, every=4)
        for name in COLUMNS
    },
    "state": Target(f"begun.partial/{STATE}", damaged_json, read_state, refuses=False),
    "calibration": Target("calibration.safetensors", damaged_weights, read_calibration),
    "quality": Target("quality.json", damaged_json, read_measured),
    "texts": Target("texts.jsonl", damaged_bytes, read_texts),
    "card": Target(f"packed/{CARD}", damaged_bytes, read_cards, refuses=False, every=4),
}

WITH_LAYOUT = ("layout",)
"""Targets for which a layout lies beside the original; for others it would hide the families."""

KEPT: Mapping[str, tuple[int, ...]] = {
    "packed config": (1420,),
    "patch": (1080, 1519),
    "weights": (1248,),
}
"""Seeds that once did harm, by target: they are always tried."""


# The tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every file, whole."""
    place = tmp_path_factory.mktemp("whole")
    torch.manual_seed(2)
    tensors = {"model.embed.weight": torch.randn(5, WIDTH)}
    for layer in range(2):
        block = f"model.layers.{layer}.mlp"
        for name, shape in (("w1", (INNER, WIDTH)), ("w3", (INNER, WIDTH)), ("w2", (WIDTH, INNER))):
            start = torch.randn(shape)
            tensors |= {
                f"{block}.experts.{expert}.{name}.weight": start + 0.1 * torch.randn(shape)
                for expert in range(EXPERTS)
            }
        tensors[f"{block}.gate.weight"] = torch.randn(EXPERTS, WIDTH)
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    config = {
        "model_type": "mixtral",
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "hidden_size": WIDTH,
        "rope_parameters": {"rope_theta": 1e6},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 2],
        "tie_word_embeddings": False,
        "transformers_version": None,
    }
    renamed = {name.replace(".mlp.", ".block_sparse_moe."): t for name, t in tensors.items()}
    for name in ("original", "sharded"):
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(config, indent=1))
    (place / "dense").mkdir()
    (place / "dense" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    parent = {
        f"model.layers.{layer}.mlp.{p}_proj.weight": torch.randn(*shape)
        for layer in range(2)
        for p, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER)))
    }
    save_file(parent, place / "dense" / SINGLE, {"format": "pt"})
    (place / "original" / "tokenizer_config.json").write_text("{}")
    save_file(renamed, place / "original" / SINGLE, {"format": "pt"})
    halves = [dict(list(renamed.items())[part::2]) for part in range(2)]
    for number, half in enumerate(halves):
        save_file(half, place / "sharded" / f"part-{number}.safetensors", {"format": "pt"})
    weight_map = {
        name: f"part-{number}.safetensors" for number, half in enumerate(halves) for name in half
    }
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (place / "sharded" / INDEX).write_text(json.dumps(index))
    (place / "original" / CARD).write_text(CARD_TEXT)
    compress(place / "original", place / "packed", Recipe.from_yaml(RECIPE))
    export(place / "packed", place / "patch", "patch")
    checkpoint = open_checkpoint(place / "original")
    analyze(checkpoint).save(place / "analysis")
    write_calibration(
        place / "calibration.safetensors",
        checkpoint.identity,
        40,
        {
            f"{layer}.{name}": value
            for layer in range(2)
            for name, value in (
                ("in.moments", torch.eye(WIDTH)),
                ("mid.moments", torch.ones(INNER)),
                ("routed", torch.tensor([20, 30, 30])),
            )
        },
        texts=["a.txt"],
    )
    (place / "begun.partial").mkdir()
    (place / "begun.partial" / STATE).write_text(json.dumps({"work": {"recipe": {"seed": 1}}}))
    (place / "begun.partial" / "group.safetensors").write_bytes(b"")
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "upcycle.yaml").write_text(UPCYCLE)
    (place / "layout.yaml").write_text(LAYOUT)
    (place / "texts.jsonl").write_text(CHAT)
    quality = {"tokens": 100, "perplexity": 4.5, "kl": 0.1, "top1_agreement": 0.9}
    (place / "quality.json").write_text(json.dumps(quality))
    return place


@pytest.fixture
def working(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tree, tmp_path / "tree"))


# The attack


def is_line(text: str) -> bool:
    """Whether a message is one line that can be shown anywhere."""
    return bool(text.strip()) and "\n" not in text and text.encode() is not None


def assert_intact(tree: Path) -> None:
    """The packed tensors are the ones that were written, as safetensors' own library reads them."""
    now = load((tree / "packed" / SINGLE).read_bytes())
    then = load((tree / "packed.whole").read_bytes())
    assert now.keys() == then.keys()
    for name, tensor in now.items():
        assert (tensor.dtype, tensor.shape) == (then[name].dtype, then[name].shape)
        assert tensor.reshape(-1).view(torch.uint8).equal(then[name].reshape(-1).view(torch.uint8))


def attack(tree: Path, target: Target, seed: int) -> bool:
    """Damage the target's file as the seed says, read it, and mend it; whether it was refused."""
    file = tree / target.file
    whole = file.read_bytes()
    file.write_bytes(target.damage(Random(f"{target.file} {seed}"), whole))
    refusal = ""
    try:
        with at_most(SECONDS):
            target.read(tree)
    except DersError as error:
        refusal = str(error) or "\n"
    finally:
        file.write_bytes(whole)
    assert not refusal or is_line(refusal), refusal
    return bool(refusal)


def test_headers_are_read_as_safetensors_own_library_reads_them(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    tensors = {"a.0.w": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int8)}
    whole = save(tensors | {"c": torch.ones(1).bfloat16()}, {"format": "pt", "k": "v"})
    file = tmp_path / "a.safetensors"
    agreed = {True: 0, False: 0}
    for seed in range(rounds(400, 9000)):
        content = damaged_weights(Random(f"header {seed}"), whole)
        file.write_bytes(content)
        try:
            theirs = {name: (each.dtype, each.shape) for name, each in load(content).items()}
        except SafetensorError:
            with pytest.raises(CheckpointError):
                read_header(file)
            agreed[False] += 1
            continue
        ours = {
            name: (each.dtype, tuple(each.shape)) for name, each in read_header(file)[0].items()
        }
        assert ours == theirs, seed
        agreed[True] += 1
    assert min(agreed.values()) > 10


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_in_one_sentence(
    working: Path, name: str, rounds: Callable[[int, int], int]
) -> None:
    shutil.copy(working / "packed" / SINGLE, working / "packed.whole")
    if name in WITH_LAYOUT:
        shutil.copy(working / "layout.yaml", working / "original" / LAYOUT_FILE)
    target = TARGETS[name]
    target.read(working)
    tried = [*KEPT.get(name, ()), *range(0, rounds(18, 2400), target.every)]
    failures: dict[int, BaseException] = {}
    refused = 0
    for seed in tried:
        try:
            refused += attack(working, target, seed)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures[seed] = error
    assert refused > 0 or not target.refuses, "nothing was damaged"
    if failures:
        seed, first = next(iter(failures.items()))
        raise AssertionError(f"{name}: seeds {sorted(failures)}; the first: {first!r}") from first
