"""The model card of an exported checkpoint: how it was made, its sizes, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.formats import Format
from ders_core.pipeline.quality import evaluated_rows
from ders_core.units import bytes_text, share_text


def model_card(
    packed: PackedCheckpoint,
    format: Format,
    bytes_written: int,
    quality: Mapping[str, Any] | None,
    base: tuple[str, str] | None = None,
) -> str:
    """Markdown with a YAML head.

    bytes_written: of the weight files; of a patch, of its tensors. quality: `Quality.to_dict()` of
    an evaluation, None if there was none. base: name and identity of the checkpoint that a patch
    was made against; None if any checkpoint with the same bases will do.
    """
    recipe = dict(packed.manifest.recipe)
    source = packed.manifest.source
    name = str(recipe["name"])
    head = yaml.safe_dump(
        {"library_name": "transformers", "tags": ["ders", "mixture-of-experts", format]},
        sort_keys=False,
    )
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
    if format == "patch":
        wanted = f"{base[0]} (`{base[1][:16]}`)" if base else "any with the same bases, packed"
        rows.append(("Base that it is applied to", wanted))
    return "\n".join(
        [
            f"---\n{head}---\n",
            f"# {packed.path.name if name == '' else name}: DeRS-compressed Mixture-of-Experts\n",
            "Each expert is `W_base + F(Δ)`; the deltas were replaced by the recipe below "
            "(DeRS, arXiv 2503.01359).\n",
            "## Sizes\n",
            "| | |\n|---|---|",
            *(f"| {key} | {value} |" for key, value in rows),
            "\nMB and GB are powers of ten.\n",
            "## Quality\n",
            _quality_text(quality),
            "## Load\n",
            _LOAD[format].replace("AUTO", auto_class(packed.config)),
            "## Recipe\n",
            f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```\n",
        ]
    )


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


def _quality_text(quality: Mapping[str, Any] | None) -> str:
    if not quality:
        return "Not measured.\n"
    rows = [(label[0].upper() + label[1:], text) for label, text in evaluated_rows(quality)]
    return "\n".join(["| | |\n|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""])
