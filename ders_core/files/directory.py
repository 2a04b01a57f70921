"""A directory appears complete or not at all. `files/output.py` adds a lock and continuing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ders_core.files.aside import sync_directory
from ders_core.files.output import made_parents, new_target, refused_writes


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a path, in a temporary directory next to `path`, at which the block makes a directory;
    when the block ends, it becomes the new directory `path`.

    The block may write more into the temporary directory. An interrupted block leaves nothing.
    Raises OutputError if `path` exists or cannot be written, if possible before the block.
    """
    new_target(path)
    with ExitStack() as stack:
        with refused_writes(path):
            stack.enter_context(made_parents(path))
            room = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
            aside = Path(stack.enter_context(room)).resolve() / path.name
        yield aside
        with refused_writes(path):
            os.rename(aside, path)
            sync_directory(path.parent)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory; when the block ends, it takes the place of the directory `path`.

    An interrupted block leaves `path` as it was.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    os.rename(aside, path)
