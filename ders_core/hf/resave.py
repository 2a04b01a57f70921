"""`save_pretrained` of a model that computes from packed experts: the packed form again."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ders_core.errors import CheckpointError, DersError
from ders_core.files.directory import filled_directory, new_directory
from ders_core.files.inputs import check_inputs, leave_out, unchanged_inputs
from ders_core.files.place_errors import writing
from ders_core.packed.model_tensors import ModelTensors
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.renewed import renewed
from ders_core.packed.writer import CheckWritten, write_packed

OF_LOADING = ("architectures", "dtype", "quantization_config", "torch_dtype")
"""Entries of a config that say how a model was loaded."""


@dataclass(frozen=True)
class HeldForm:
    """The packed checkpoint from which a model holds its experts.

    tensors: what the model took of it. taken: the original's tensors that it holds packed, by name.
    settings: the model's config when it was loaded.
    """

    packed: PackedCheckpoint
    tensors: ModelTensors
    taken: frozenset[str]
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        packed: PackedCheckpoint,
        tensors: ModelTensors,
        taken: Iterable[str],
    ) -> HeldForm:
        """Of a model that is loaded."""
        return cls(packed, tensors, frozenset(taken), model.config.to_dict())

    def save(
        self, model: PreTrainedModel, place: str | Path, state: Mapping[str, torch.Tensor] | None
    ) -> None:
        """Write the packed form into a directory that is new, or empty.

        state: weights in place of the model's own, by its names. What differs from what was loaded
        is written as it is, in its own dtype; all else, the experts above all, is copied from the
        packed files. Raises DersError for a name that the model's own state does not have,
        CheckpointError if these were changed since they were opened, OutputError if the directory
        cannot be written or others wrote into it meanwhile; then nothing of the model is there.
        """
        self.packed.store.check_unchanged()
        with unchanged_inputs(), _directory(Path(place)) as directory:
            self.packed.store.hold()
            values = self._changed(model, state)
            contents = renewed(self.packed, values, self._new_settings(model))
            directory.mkdir()
            leave_out(directory)
            write_packed(directory, contents, check=self._check(values))
            if model.can_generate():
                model.generation_config.save_pretrained(directory)
            check_inputs()

    def _changed(
        self, model: PreTrainedModel, state: Mapping[str, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        """The weights that are not those that were loaded, by the original's names."""
        given = _weights(model, state)
        originals = {parameter: name for name, parameter in self.tensors.names().items()}
        changed: dict[str, torch.Tensor] = {}
        places = {tensor.data_ptr() for name, tensor in given.items() if name in originals}
        for name, tensor in given.items():
            if name not in originals:
                is_tied = tensor.data_ptr() in places
                if not is_tied and name not in (model._keys_to_ignore_on_save or ()):
                    changed[name] = tensor
            elif originals[name] not in self.taken:
                loaded = self.tensors.read(originals[name])
                if not _same(loaded.to(tensor.dtype), tensor.cpu()):
                    changed[originals[name]] = tensor
        return changed

    def _new_settings(self, model: PreTrainedModel) -> dict[str, Any]:
        """Entries of the config that were set since the model was loaded."""
        return {
            key: value
            for key, value in model.config.to_dict().items()
            if key not in OF_LOADING and (key not in self.settings or self.settings[key] != value)
        }

    def _check(self, values: Mapping[str, torch.Tensor]) -> CheckWritten:
        """What compares a tensor that was copied with its checksum."""
        promised = self.packed.manifest.checksums

        def check(name: str, sha256: str) -> None:
            if name not in values and promised.get(name, sha256) != sha256:
                raise CheckpointError(
                    f"{self.packed.path}: {name!r} is damaged (its checksum differs); copy the "
                    "directory again"
                )

        return check


class PackedSave:
    """`save_pretrained` of a model that holds its experts packed. A copy of the model has its own;
    a pickle would lose it, and with it the experts, so there is none."""

    def __init__(self, model: PreTrainedModel, form: HeldForm) -> None:
        self._model, self._form = model, form

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As of every model; but a model that has an adapter saves that alone. Other arguments
        change nothing: files are as large as `compress` makes them."""
        model = self._model
        if getattr(model, "_hf_peft_config_loaded", False):
            options = {"is_main_process": is_main_process, "state_dict": state_dict}
            type(model).save_pretrained(
                model, save_directory, push_to_hub=push_to_hub, **options, **kwargs
            )
            return
        if push_to_hub or kwargs.get("variant") is not None:
            raise DersError(
                "a model with packed experts is saved to a directory and under the usual names: "
                "leave out push_to_hub and variant, and upload the directory"
            )
        if is_main_process:
            self._form.save(model, os.fspath(save_directory), state_dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedSave:
        return PackedSave(copy.deepcopy(self._model, memo), self._form)

    def __reduce__(self) -> Any:
        raise DersError(
            "a model with packed experts cannot be pickled, as torch.save of a whole model does; "
            "save it with save_pretrained(directory) and load that with the same mode"
        )


def _directory(place: Path) -> AbstractContextManager[Path]:
    """Where to make what becomes this directory. Raises OutputError if there is one, unless it is
    empty: trainers make it beforehand."""
    with writing(place):
        exists = place.is_dir()
    return filled_directory(place, last="config.json") if exists else new_directory(place)


def _weights(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """The weights to save, by the names of a checkpoint: the model's own, or those of `state`."""
    own: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(model.state_dict()))
    if not state:
        return own
    weights: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(state))
    unknown = sorted(weights.keys() - own.keys())
    if unknown:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise DersError(
            f"state_dict holds {unknown[0]!r}{more}, which this model's own state_dict() does not "
            "have, as its experts stay packed; leave such names out, or load the model with the "
            "mode 'synthesized' and save that"
        )
    return weights


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors on the CPU have the same bits."""
    if first.shape != second.shape:
        return False
    bits = [each.detach().contiguous().view(-1).view(torch.uint8) for each in (first, second)]
    return torch.equal(*bits)
