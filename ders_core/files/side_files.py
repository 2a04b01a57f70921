"""The files beside a model's weights: which travel with it, and which are left aside.

What is not weights travels, in folders too: tokenizer, templates, code, licence. So does an
adapter, which transformers applies to whatever model it lies beside. Other weights do not: shards
of an older save, another format's copy, an EMA, the state of a training.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ders_core.files.address import copy_file, is_remote
from ders_core.files.links import leads_out
from ders_core.files.model_files import PICKLES, SUFFIX

WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".distcp")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
PICKLED_WEIGHTS = re.compile(
    r"(pytorch_model|diffusion_pytorch_model|consolidated|optimizer|scheduler|scaler|rng_state"
    r"|training_args|global_step|zero_pp_rank|mp_rank|bf16_zero).*|(model|ema)[.-].*|.*-of-\d+.*",
    re.IGNORECASE,
)
"""Pickles of weights and of the state of a training. Another one, such as the voices of a speaking
model, is a part of the model that transformers reads beside its weights."""

UNFINISHED = ".partial/"
"""In the name of a file that an output, begun within the model's directory, holds so far."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""What AutoTokenizer reads, or most of it."""

READ_WITH_WEIGHTS = frozenset(
    (
        *TOKENIZER_FILES,
        *ADAPTERS,
        "adapter_config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
    )
)

OTHER_MODELS = ("ders_patch.json", "ders_manifest.json")


@dataclass(frozen=True)
class SideFile:
    """name: relative to the model's directory, with slashes. path: where it is read."""

    name: str
    path: Path


@dataclass(frozen=True)
class Beside:
    """What lies beside the weights, by name. left_aside: weights that are not the model's, and
    folders (with a slash at their end) that hold another model. linked_out: links to files
    elsewhere, which do not travel either (see `ders_core.files.links`)."""

    files: tuple[SideFile, ...]
    left_aside: tuple[str, ...]
    linked_out: tuple[str, ...] = ()


def beside(directory: Path, names: Iterable[str], used: Collection[str]) -> Beside:
    """Sort the files of a directory.

    names: of all files, relative, with slashes. used: those that the model's store reads itself.
    Hidden files and folders are neither carried nor told of.
    """
    visible = sorted(name for name in names if not _is_hidden(name) and name not in used)
    others = tuple(f"{folder}/" for folder in sorted(_other_models(visible)))
    files, left, linked = [], [*others], []
    for name in visible:
        if name.startswith(others) or UNFINISHED in name:
            continue
        if is_weights(name.removesuffix(".index.json")):
            left.append(name)
        elif leads_out(directory / name, directory):
            linked.append(name)
        else:
            files.append(SideFile(name, directory / name))
    return Beside(tuple(files), tuple(sorted(left)), tuple(linked))


def is_weights(name: str) -> bool:
    """Whether a file holds weights or the state of a training, and no adapter."""
    last = PurePosixPath(name).name
    if last in ADAPTERS:
        return False
    if last.endswith(PICKLES):
        return bool(PICKLED_WEIGHTS.fullmatch(last)) or last.endswith(".ckpt")
    return last.endswith((SUFFIX, *WEIGHTS))


def is_read_with_weights(name: str) -> bool:
    """Whether a file changes what the model does, such as a tokenizer or code; a log does not."""
    last = PurePosixPath(name).name
    return last in READ_WITH_WEIGHTS or last.endswith(".py")


def copy_side_files(files: Sequence[SideFile], directory: Path) -> None:
    """Copy files into a directory by content, into the same folders.

    Raises CheckpointError for a file that cannot be read, OSError for one that cannot be written;
    the directory is not made again if it is gone.
    """
    for file in files:
        target = directory / file.name
        for folder in reversed(PurePosixPath(file.name).parents[:-1]):
            (directory / folder).mkdir(exist_ok=True)
        copy_file(file.path, target)


def local_bytes(files: Iterable[SideFile]) -> int:
    """Bytes of the files that are on this machine."""
    sizes = 0
    for file in files:
        if not is_remote(file.path):
            with suppress(OSError):  # told when it is read
                sizes += file.path.stat().st_size
    return sizes


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")) or "__pycache__" in name.split("/")


def _other_models(names: Sequence[str]) -> set[str]:
    """The outermost folders that hold a model, packed or not, or a patch."""
    by_folder: dict[str, set[str]] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        if folder:
            by_folder.setdefault(folder, set()).add(last)
    models = {
        folder
        for folder, files in by_folder.items()
        if files.intersection(OTHER_MODELS)
        or ("config.json" in files and any(is_weights(file) for file in files))
    }
    return {
        folder
        for folder in models
        if not any(folder.startswith(f"{other}/") for other in models if other != folder)
    }
