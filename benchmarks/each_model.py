"""What benchmarks of quality have in common: options, and a model with its calibration and
predictions."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unbiased_models import CALIBRATION_TOKENS, MODELS, Model, calibrated
from versions import versions
from window_kl import Reference

from ders_core import open_checkpoint
from ders_core.checkpoint import Checkpoint


@dataclass(frozen=True)
class KnownModel:
    """name: of MODELS. place: WORK. tokens: that are measured on."""

    name: str
    place: Path
    tokens: int
    calibration_tokens: int
    model: Model
    original: Checkpoint

    @classmethod
    def of(cls, name: str, options: argparse.Namespace) -> KnownModel:
        """Make the model, unless it is there. options: of `run`."""
        model = MODELS[name](options.work)
        original = open_checkpoint(model.moe)
        tokens, calibration_tokens = options.tokens, options.calibration_tokens
        return cls(name, options.work, tokens, calibration_tokens, model, original)

    @property
    def title(self) -> str:
        return f"## {self.name}: {(MODELS[self.name].__doc__ or '').splitlines()[0]}"

    @property
    def key(self) -> list[object]:
        """What a measurement depends on."""
        return [self.original.identity, self.tokens, self.calibration_tokens]

    def reference(self, text: Path | None = None, kind: str = "") -> Reference:
        """Predictions on a held-out text, the model's own by default. kind: of another one."""
        short = "-".join(filter(None, (self.name, kind, str(self.tokens), self._identity)))
        place = self.place / "predictions" / short
        return Reference.of(self.model.moe, text or self.model.heldout_text, self.tokens, place)

    def calibration(
        self, model: Model | None = None, kind: str = "", *, each_expert: bool = True
    ) -> Path:
        """With gradients, of others, and of each expert's inputs or of all together. model: with
        another calibration text, of that kind."""
        inputs = "others-each" if each_expert else "others"
        label = "-".join(filter(None, (inputs, kind, str(self.calibration_tokens))))
        place = self.place / "calibrations" / f"{self.name}-{self._identity}"
        file = place / f"{label}.safetensors"
        tokens = self.calibration_tokens
        more = {"gradients": True, "others": True, "each_expert": each_expert}
        return calibrated(model or self.model, file, tokens, **more)

    @property
    def _identity(self) -> str:
        return self.original.identity[:12]


def run(
    parser: argparse.ArgumentParser,
    table: Callable[[KnownModel, argparse.Namespace], None],
    *,
    models: tuple[str, ...] = ("shipped-demo",),
    tokens: int = 4096,
) -> None:
    """Print a table of each model. parser: with the options of this benchmark alone. models,
    tokens: defaults."""
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=models)
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--calibration-tokens", type=int, default=CALIBRATION_TOKENS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(versions())
    for name in options.models:
        known = KnownModel.of(name, options)
        print(f"\n{known.title}")
        table(known, options)
