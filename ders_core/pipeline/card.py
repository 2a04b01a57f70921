"""The model card of an exported checkpoint: how it was made, its sizes, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ders_core.codecs.group import BaseForm
from ders_core.files.address import name_of
from ders_core.files.links import leads_out
from ders_core.files.untrusted_yaml import YamlFault, parse_foreign_yaml
from ders_core.packed.manifest import Repair
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.formats import Format
from ders_core.pipeline.quality import GAIN, KL, NOISE, PREDICTED_KL, evaluated_rows, figure_rows
from ders_core.units import bytes_text, share_text

CARD = "README.md"
TAG, FIELD = "ders", "mixture-of-experts"


def model_card(
    packed: PackedCheckpoint,
    format: Format,
    bytes_written: int,
    quality: Mapping[str, Any] | None,
    base: tuple[str, str] | None = None,
    outlook: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with a YAML head: the metadata of the original's card, and ours.

    bytes_written: of the weight files; of a patch, of its tensors. quality: `Quality.to_dict()` of
    an evaluation, None if there was none. base: name and identity of the checkpoint that a patch
    was made against; None if any checkpoint with the same bases will do. outlook: `Outlook` of the
    report as plain values, None if it is not known.
    """
    recipe = dict(packed.manifest.recipe)
    source = packed.manifest.source
    name = str(recipe["name"])
    head = yaml.safe_dump(_metadata(packed, format), sort_keys=False, allow_unicode=True)
    codecs = sorted({group.group_codec().label for group in packed.manifest.groups})
    rows = [
        ("Original weight files", bytes_text(source.bytes_total)),
        ("This checkpoint's weight files", bytes_text(bytes_written)),
        (
            "Packed form",
            f"{bytes_text(packed.bytes_total)} "
            f"({share_text(packed.bytes_total / source.bytes_total)} of original)",
        ),
        ("Groups replaced", f"{len(packed.manifest.groups)} ({', '.join(codecs) or 'none'})"),
        ("Original's identity", f"`{source.identity[:16]}`"),
    ]
    forms = sorted({form.codec.label for form in _base_forms(packed) if form.is_coded})
    if forms:
        rows.insert(-1, ("Bases", ", ".join(forms)))
    others = packed.manifest.others
    if others:
        labels = sorted({other.group_codec().label for other in others})
        rows.insert(-1, ("Other tensors coded", f"{len(others)} ({', '.join(labels)})"))
    repairs = packed.manifest.repairs
    if repairs:
        rows.insert(-1, ("Repaired", "; ".join(map(_repaired, repairs))))
    if format == "patch":
        wanted = f"{base[0]} (`{base[1][:16]}`)" if base else "any with the same bases, packed"
        rows.append(("Base that it is applied to", wanted))
    return "\n".join(
        [
            f"---\n{head}---\n",
            f"# {name or name_of(packed.path)}: DeRS-compressed Mixture-of-Experts\n",
            f"{_method(packed)}\n",
            "## Quality\n",
            _quality_text(quality or {}, outlook or {}),
            "## Sizes\n",
            _table(rows),
            "MB and GB are powers of ten.\n",
            "## Load\n",
            _LOAD[format].replace("AUTO", auto_class(packed.config)),
            "## Recipe\n",
            f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```\n",
        ]
    )


def _method(packed: PackedCheckpoint) -> str:
    """What was done to the experts, in a sentence or two."""
    decomposed = (
        "is `W_base + F(Δ)`; the deltas were replaced by the recipe below (DeRS, arXiv 2503.01359)."
    )
    alone = "coded by itself, without a base, by the recipe below"
    without_base = {group.without_base for group in packed.manifest.groups}
    if without_base == {True}:
        return f"Each expert's weight was {alone}."
    if without_base == {True, False}:
        return f"Each expert {decomposed} In some groups each expert's weight was {alone}."
    return f"Each expert {decomposed}"


def _repaired(repair: Repair) -> str:
    """What was trained after the packing, on what, and what it came to."""
    trained = ", ".join(f"{count:,} {word}" for word, count in repair.trained.items())
    texts = ", ".join(f"`{name}`" for name in repair.texts)
    heldout = ", ".join(f"`{name}`" for name in repair.heldout) or "parts of it that were held out"
    return (
        f"{trained}, by {repair.steps} steps on {texts}; KL {KL.text(repair.kl_before)} before and "
        f"{KL.text(repair.kl_after)} after, on {heldout}"
    )


def _base_forms(packed: PackedCheckpoint) -> list[BaseForm]:
    forms = (group.base_form() for group in packed.manifest.groups)
    return [form for form in forms if form is not None]


def is_ours(card: str) -> bool:
    """Whether a model card was written by `model_card`."""
    return TAG in _tags(front_matter(card))


def front_matter(card: str) -> dict[str, Any]:
    """The metadata at the head of a model card; empty if there is none that can be read."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    end = next((n for n, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    try:
        metadata = parse_foreign_yaml("\n".join(lines[1:end]))
    except YamlFault:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _metadata(packed: PackedCheckpoint, format: Format) -> dict[str, Any]:
    """The original's licence, languages and the rest, and what is true of the compressed one."""
    card = read_card(packed.path)
    original = {} if is_ours(card) else front_matter(card)
    tags = [tag for tag in _tags(original) if tag not in (TAG, FIELD, format)]
    base = {"base_model": packed.hub_name} if packed.hub_name else {}
    relation = {"base_model_relation": "quantized"} if base or "base_model" in original else {}
    library = {"library_name": original.get("library_name", "transformers")}
    return {**original, **base, **relation, **library, "tags": [*tags, TAG, FIELD, format]}


def _tags(metadata: Mapping[str, Any]) -> list[Any]:
    tags = metadata.get("tags")
    return tags if isinstance(tags, list) else []


def read_card(directory: Path) -> str:
    """The text of a directory's model card; empty if there is none, or a link to one elsewhere."""
    file = directory / CARD
    if not file.is_file() or leads_out(file, directory):
        return ""
    return file.read_text(encoding="utf-8", errors="replace")


def auto_class(config: Mapping[str, Any]) -> str:
    """The name of transformers' auto class for a model with this config.json."""
    encoder = config.get("is_encoder_decoder")
    return "AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM"


_LOAD: Mapping[Format, str] = {
    "packed": """```python
from ders_core.hf import load_model, load_tokenizer  # pip install ders-studio

model = load_model("PATH")  # weights are synthesized while loading
tokenizer = load_tokenizer("PATH")
```

`ders synthesize PATH OUT` brings it back to the original layout, which loads anywhere.
""",
    "original": """```python
from transformers import AUTO, AutoTokenizer

model = AUTO.from_pretrained("PATH", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

The layout is the original's: any engine that loads the original loads this.
""",
    "patch": """```
ders apply BASE PATH OUT      # OUT is the packed checkpoint
ders rollback OUT ELSEWHERE   # and this is the way back
```

The deltas alone; checksums identify the base that they need, and any other is refused.
""",
}


def _quality_text(quality: Mapping[str, Any], outlook: Mapping[str, Any]) -> str:
    """Measured figures and predicted KL, KL first; then gain and noise, with what they mean."""
    measured = evaluated_rows(quality)
    leading = [row for row in measured if row[0] == KL.label]
    others = [row for row in measured if row[0] != KL.label]
    rows = [*leading, *figure_rows([PREDICTED_KL], outlook), *others]
    rows += [
        (f"{label}, mean over the replaced groups", text)
        for label, text in figure_rows([GAIN, NOISE], outlook)
    ]
    text = _table([(label[0].upper() + label[1:], value) for label, value in rows]) if rows else ""
    if not quality:
        text = f"Not measured.\n\n{text}" if rows else "Not measured.\n"
    return text + (f"{GAIN.help} {NOISE.help}\n" if outlook.get(GAIN.key) is not None else "")


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |\n|---|---|", *(f"| {key} | {value} |" for key, value in rows), "\n"])
