"""Every MoE family that transformers can build: opened, packed, loaded by transformers, compared.

Each family is packed once: one projection so that nothing is lost, each other with a codec that
loses something, the next ones in turn. The model that transformers loads from that gives the
logits, bit for bit, of a checkpoint in which the one projection is as it was and the others were
synthesized outside of the pipeline, straight from the codecs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.family_names import FAMILIES, FEW_LAYERS
from support.moe_families import (
    EXPERTS,
    NO_MOE,
    PART_OF_ANOTHER,
    TOKENS,
    VOCABULARY,
    Family,
    default_of,
    family_of,
    kinds_left_out,
    walk,
)
from transformers import CONFIG_MAPPING, PreTrainedModel

from ders_core.calibrate.locate import locate_weights
from ders_core.calibrate.observer import InputObserver, Sums
from ders_core.checkpoint import PROJECTIONS, ExpertGroup
from ders_core.codecs import (
    Chain,
    Codec,
    EncodeContext,
    Entropy,
    Keep,
    Lossless,
    LowRank,
    Quantized,
    Sparse,
)
from ders_core.codecs.coding.prng import expert_seed
from ders_core.hf.plugin import WITHOUT_THREADS, experts_held
from ders_core.hf.routing import recorded_choices
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.calibration import IN, SIDES
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe, Rule
from ders_core.recipe.rule import USUAL_KINDS
from ders_core.runtime.modes import Mode

SEED = 5
CODECS: tuple[Codec, ...] = (
    Sparse(drop_rate=0.5),
    Sparse(method="magnitude", drop_rate=0.7),
    Quantized(bits=3, group_size=8),
    Quantized(bits=1, group_size=8),
    LowRank(rank=2),
    Sparse(pattern="2:4", value_bits=8),
    Quantized(grid="ternary", group_size=8, scale_bits=8),
    Entropy(bits=1.5),
    Chain(stages=(LowRank(rank=1), Quantized(bits=2, group_size=8))),
)
"""What loses something."""

EXACT: tuple[Codec, ...] = (Lossless(), Keep(), Lossless())
"""What loses nothing, as often as this: differences to a base, or the weights themselves."""

PARTLY_FLOAT32 = {"minimax", "nllb-moe"}
"""Families that run in bfloat16 only as `from_pretrained` makes them: some weights stay float32."""


@dataclass(frozen=True)
class Case:
    """number: of the family, among all; model: what was saved at the path."""

    number: int
    family: Family
    path: Path
    model: PreTrainedModel

    def load(self, path: Path) -> PreTrainedModel:
        model, info = self.family.model_class.from_pretrained(
            path, dtype=self.family.dtype, output_loading_info=True
        )
        untied = set(info["missing_keys"]) - set(model.all_tied_weights_keys)
        assert not untied
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        return model

    def logits(self, path: Path) -> torch.Tensor:
        return self.answer(self.load(path))

    def answer(self, model: PreTrainedModel) -> torch.Tensor:
        torch.manual_seed(0)  # a diffusion model draws what it starts from
        with torch.inference_mode():
            answer = model(**self.family.inputs())
        logits: torch.Tensor = answer.logits if hasattr(answer, "logits") else answer[0]
        return logits


@pytest.fixture(
    scope="module",
    params=enumerate(FAMILIES),
    ids=lambda numbered: numbered[1].replace("-", "_"),
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    number: int
    model_type: str
    number, model_type = request.param
    family = family_of(model_type)
    assert isinstance(family, Family), f"{model_type} cannot be built: {family}"
    path = tmp_path_factory.mktemp("family") / "original"
    model = family.build()
    model.save_pretrained(path)
    case = Case(number, family, path, model)
    yield replace(case, model=case.load(path)) if model_type in PARTLY_FLOAT32 else case
    for file in path.iterdir():
        file.unlink()


@pytest.fixture(scope="module", autouse=True)
def _without_threads() -> Iterator[None]:
    """transformers reads what it loads here in this thread: there are more threads than weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WITHOUT_THREADS, "1")
        yield


@pytest.fixture(scope="module")
def logits(case: Case) -> torch.Tensor:
    """What the original answers."""
    logits = case.answer(case.model)
    assert bool(torch.isfinite(logits).all())
    assert logits.float().std() > 0
    return logits


def recipe(*rules: Rule) -> Recipe:
    return Recipe(name="one", seed=SEED, rules=rules)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            stored |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return stored


def synthesized(group: ExpertGroup, codec: Codec) -> Iterator[torch.Tensor]:
    """Ŵ_i `[out, in]` by the definition: the mean as stored, and what the codec makes of it."""
    weights = group.read()  # [K, out, in]
    base = (weights.float().sum(0) / len(weights)).to(group.dtype.torch)
    fitted = codec.fit(list(weights.float() - base.float()))
    for expert, weight in enumerate(weights):
        context = EncodeContext(group.dtype.torch, expert_seed(SEED, *group.key, expert))
        yield fitted.unpack(fitted.pack(weight, base, context), base, context)


def test_all_experts_are_found(case: Case) -> None:
    """As many weights as the model holds in modules that are called experts."""
    checkpoint = open_checkpoint(case.path)
    assert checkpoint.recognition.sure == 1
    assert checkpoint.top_k in (1, 2, None)
    assert len(checkpoint.moe_layers) > 1 or case.family.model_type not in FEW_LAYERS
    held = [
        tensor.numel()
        for name, tensor in tensors(case.path).items()
        if _is_experts(name, tensor, case.family.model_type)
    ]
    groups = checkpoint.groups()
    assert sum(len(group.experts) * group.shape[1] * group.shape[2] for group in groups) == sum(
        held
    )


def test_other_tensors_are_named(case: Case) -> None:
    """Routers' parts, always-on experts, attention's projections by the model's own words, which no
    layout reads; and what has a row for each word of the vocabulary, outside of the layers."""
    for name, other in open_checkpoint(case.path).others.items():
        is_matrix = sum(size > 1 for size in other.info.shape) > 1
        if re.search(r"router|e_score_correction|expert_bias|balancing", name):
            assert other.kind not in USUAL_KINDS, name
        elif not is_matrix:
            assert other.kind in ("router", "norm", "vector", "shared"), name
        elif re.search(r"shared?_experts?\.", name):
            assert other.kind == "shared", name
        elif re.search(r"\.\d+\..*[._](q|k|v|q_a)_proj\.weight", name):
            assert other.kind == "attention", name
        elif other.info.shape[0] == VOCABULARY and not re.search(r"\.\d+\.|attn", name):
            assert other.kind in ("embedding", "head"), name


def _is_experts(name: str, tensor: torch.Tensor, model_type: str) -> bool:
    if "shared" in name or "self_attention" in name:  # JetMoE's attention is a mixture too
        return False
    if ".ffn.experts.mlp." in name:  # DBRX stacks them along rows
        return True
    if tensor.dim() == 3:
        return len(tensor) == EXPERTS and re.search(r"expert|moe|\.mlp\.", name) is not None
    number = re.search(r"experts\.(?:expert_)?(\d+)\.", name)
    if tensor.dim() != 2 or number is None:
        return False
    return model_type != "longcat_flash" or int(number[1]) < EXPERTS  # the rest are zero experts


UNSEEN = {
    "diffusion_gemma": "it runs the text several times in one forward pass",
    "nllb-moe": "transformers 5.23 takes its mask of chosen experts for their numbers",
}
"""Families whose choice of experts is not told, and why."""


def test_the_choice_of_experts_is_what_they_multiplied(case: Case, logits: torch.Tensor) -> None:
    """Counted at the matrix products, which know the experts by the addresses of their weights."""
    original = case.model
    torch.manual_seed(0)
    for name, table in original.named_buffers():
        if name.endswith("tid2eid"):  # DeepSeek-V4's, of the experts of each token: here all zeros
            table.copy_(torch.stack([torch.randperm(EXPERTS)[: table.shape[1]] for _ in table]))
    checkpoint = open_checkpoint(case.path)
    original.set_experts_implementation("eager")  # products of one expert after another
    locations = locate_weights(original, checkpoint)
    held = {location.layer for location in locations.values()}
    sums = {
        (group.layer, SIDES[group.projection]): Sums.empty(
            group.shape[0], group.shape[2], 64, original.device
        )
        for group in checkpoint.groups()
        if group.layer in held
    }
    torch.manual_seed(0)
    observer = InputObserver(locations, sums)
    with torch.no_grad(), recorded_choices(original) as choices, observer:
        original(**case.family.inputs())
    chosen = choices.take(TOKENS)
    if case.family.model_type in UNSEEN:
        assert chosen is None
        return
    assert chosen is not None
    counts = [sums[layer, IN].counts for layer in sorted(held)]
    reached = [count for count in counts if bool(count.any())]
    assert len(chosen) == len(reached)
    for layer, count in zip(chosen, reached, strict=True):
        recorded = layer[layer >= 0].bincount(minlength=len(count))[: len(count)]
        assert torch.equal(recorded, count)


def codecs_of(number: int, projections: Sequence[str]) -> dict[str, Codec]:
    """Projection -> codec, another one for each."""
    first = (1 + len(PROJECTIONS)) * number
    codecs = {name: CODECS[(first + PROJECTIONS.index(name)) % len(CODECS)] for name in projections}
    exact = projections[number // len(CODECS) % len(projections)]
    codecs[exact] = EXACT[number % len(EXACT)]
    return codecs


def test_logits_are_those_of_the_synthesized_weights(
    case: Case, logits: torch.Tensor, tmp_path: Path
) -> None:
    """And what is synthesized are those weights: all else is as it was."""
    checkpoint, expected = open_checkpoint(case.path), tensors(case.path)
    groups = checkpoint.groups()
    held = {group.projection for group in groups}
    codecs = codecs_of(case.number, [name for name in PROJECTIONS if name in held])
    rules = [Rule(codec=codec, projections=(name,)) for name, codec in codecs.items()]
    compress(case.path, tmp_path / "packed", recipe(*rules))
    for group in groups:
        codec = codecs[group.projection]
        if codec in EXACT:
            continue
        for matrix, weight in zip(group.experts, synthesized(group, codec), strict=True):
            matrix.slot.view(expected[matrix.info.name].flatten()).copy_(weight)
    synthesize(tmp_path / "packed", tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert expected.keys() == back.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, back[name]), name
        assert tensor.dtype == back[name].dtype
    directory = tmp_path / "expected"
    directory.mkdir()
    save_file(expected, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_bytes((case.path / "config.json").read_bytes())
    got = case.logits(tmp_path / "packed")
    assert torch.equal(got, case.logits(directory))
    assert not torch.equal(got, logits)
    packed = PackedCheckpoint(tmp_path / "packed").manifest.groups
    _check_held(case, tmp_path / "packed")
    coded = {group.projection: group.group_codec().codec for group in packed}
    assert {name for name, codec in coded.items() if codec != Keep()} == {
        name for name, codec in codecs.items() if codec != Keep()
    }


def _check_held(case: Case, packed: Path) -> None:
    """With experts that stay packed, the model answers as with synthesized ones, but for sums."""

    def answer(mode: Mode) -> torch.Tensor:
        with experts_held(mode):
            model = case.family.model_class.from_pretrained(packed, dtype=torch.float32)
        return case.answer(model)

    expected = answer("synthesized")
    error = float((answer("packed") - expected).abs().max())
    assert error <= 2e-5 * float(expected.abs().max())


def test_each_codec_meets_each_projection() -> None:
    """Also those that lose nothing."""
    met = {
        (name, codec)
        for number in range(len(FAMILIES))
        for name, codec in codecs_of(number, PROJECTIONS).items()
    }
    assert met == {(name, codec) for name in PROJECTIONS for codec in (*CODECS, *EXACT)}


def test_no_family_is_forgotten() -> None:
    """Each configuration that speaks of experts is built, or named with the reason why not."""
    built, without = walk()
    assert built == FAMILIES
    known = {*built} | without.keys() | NO_MOE.keys()
    for model_type in set(CONFIG_MAPPING) - known:
        try:
            default = default_of(model_type)
        except Exception:
            continue
        assert "expert" not in str(default.to_dict()), model_type
    assert len(built) >= 80
    for model_type in FEW_LAYERS:
        family = family_of(model_type)
        assert isinstance(family, Family)
        assert not kinds_left_out(family), f"{model_type}: FEW_LAYERS makes it too short"
    for model_type, reason in without.items():
        is_part = reason == PART_OF_ANOTHER
        assert is_part or model_type in {"qwen3_omni_moe"}, f"{model_type}: {reason}"
