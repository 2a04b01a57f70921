"""A device that exists only in tests, and what a program waits for on it.

Its tensors say that they are on `meta`, and each holds a tensor of the CPU, on which every
operation is done: so what is computed is right, and takes the ways of what is not on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ders_core.checkpoint.piece_buffers import PieceBuffer
from ders_core.compute import threads

DEVICE = torch.device("meta")
SCALARS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
LOOKED_AT = ("aten::allclose", "aten::multinomial", "aten::mode")
SIZED = (
    *("aten::nonzero", "aten::nonzero_numpy", "aten::masked_select", "aten::bincount"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
    *("aten::unique_dim_consecutive", "aten::argwhere", "aten::one_hot", "aten::_to_sparse"),
)
SOLVERS = (
    *("eig", "eigh", "eigvals", "eigvalsh", "svd", "svdvals", "cholesky", "inv", "solve"),
    *("lu_factor", "ldl_factor", "lstsq", "pinv", "matrix_rank", "matrix_exp"),
)
CHECKED = {f"aten::{mark}linalg_{name}" for name in SOLVERS for mark in ("", "_")}
CHECKED |= {"aten::inverse", "aten::cholesky", "aten::cholesky_inverse"}
"""Of linear algebra, what looks on the host whether it went well. On a GPU, factors of Cholesky and
LU by functions in `_ex` do not unless they are told to, nor do QR, determinants and triangular
solvers."""

SHAPED_AS = ("aten::expand_as", "aten::view_as", "aten::reshape_as")
"""What stays where it is, wherever the tensor is whose shape it gets."""

COPIES = ("aten::copy_", "aten::_to_copy")
TOGETHER = ("aten::cat", "aten::stack")
"""What takes not even a single number of the CPU beside tensors of the device."""


class Far(torch.Tensor):
    """A tensor of that device."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        far: Far = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        far.near = near
        return far

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own stub lacks cls and func
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of `counted_waits`")


class Waits(Counter[str]):
    """How often a program waits, by operations. sent: for copies to the device, which are no part
    of it, from memory that is not pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()


class _Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counted = Waits()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, names = func._schema.name, [each.name for each in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | (kwargs or {})
        used = args[:1] if name in SHAPED_AS else (args, kwargs)
        far = [each for each in tree_leaves(used) if isinstance(each, Far)]
        place = arguments.get("device")
        _check_seen(name, used)
        if far and name not in COPIES:
            _check_together(name, arguments)
        stays = bool(far) if place is None else torch.device(place) == DEVICE
        if name == "aten::copy_":
            stays = isinstance(args[0], Far)
        is_sized = name in SIZED or _masks(name, arguments) or _repeats(name, arguments)
        is_sized |= name == "aten::where" and len(arguments) == 1  # the places of a condition
        is_checked = name in CHECKED or arguments.get("check_errors", False)
        is_looked_at = name in (*SCALARS, *LOOKED_AT) or _spans(name, arguments)
        if far and (not stays or is_looked_at or is_sized or is_checked):
            self.counted[name] += 1
        if stays and _is_sent(name, arguments) and not arguments.get("non_blocking"):
            self.counted.sent[name] += 1
        near = tree_map_only(Far, lambda each: each.near, arguments)
        if place is not None:
            near["device"] = torch.device("cpu")
        ordered = [
            near.pop(each.name)
            for each in func._schema.arguments
            if not each.kwarg_only and each.name in near
        ]
        result = func(*ordered, **near)
        if name in SCALARS or not stays:
            return result
        known = {id(each.near): each for each in far}  # what is changed in place

        def far_of(near: torch.Tensor) -> Far:
            return known[id(near)] if id(near) in known else Far(near)

        return tree_map_only(torch.Tensor, far_of, result)


def _check_seen(name: str, used: Any) -> None:
    """Raise an error for a tensor that is on the device and not of it, and whose values nobody has:
    torch makes such a one where no mode sees it, of a list that indexes a tensor."""
    tensors = [each for each in tree_leaves(used) if isinstance(each, torch.Tensor)]
    if any(each.device == DEVICE and not isinstance(each, Far) for each in tensors):
        raise RuntimeError(f"a tensor was made on the device without being sent there: {name}")


def _check_together(name: str, arguments: dict[str, Any]) -> None:
    """Raise what torch would on a GPU for a tensor of the CPU beside one of the device. A single
    number of the CPU may be beside most, and so may indices of `[...]`."""
    indices = _indices(name, arguments)
    others = [each for each in arguments.values() if each is not indices]
    least = 0 if name in TOGETHER else 1
    if any(near.dim() >= least for near in _near(others)):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")


def _is_sent(name: str, arguments: dict[str, Any]) -> bool:
    """Whether it brings a tensor of the CPU to the device."""
    if name == "aten::copy_":
        return arguments["src"].dim() > 0 and not isinstance(arguments["src"], Far)
    if any(isinstance(each, Far) for each in tree_leaves(arguments)):
        return bool(_near(_indices(name, arguments)))
    return bool(_near(arguments))


def _near(arguments: Any) -> list[torch.Tensor]:
    """The tensors of the CPU among them."""
    tensors = [each for each in tree_leaves(arguments) if isinstance(each, torch.Tensor)]
    return [each for each in tensors if not isinstance(each, Far)]


def _indices(name: str, arguments: dict[str, Any]) -> Any:
    """Of `[...]`; None for other operations."""
    return arguments.get("indices") if "index" in name else None


def _spans(name: str, arguments: dict[str, Any]) -> bool:
    """Whether it asks for the least and the largest value, to know where its bins lie."""
    return name == "aten::histc" and arguments.get("min", 0) == arguments.get("max", 0)


def _repeats(name: str, arguments: dict[str, Any]) -> bool:
    """Whether it asks how often, to know the size of the result."""
    return name == "aten::repeat_interleave" and arguments.get("output_size") is None


def _masks(name: str, arguments: dict[str, Any]) -> bool:
    indices = _indices(name, arguments)
    return isinstance(indices, (list, tuple)) and any(
        each is not None and each.dtype == torch.bool for each in indices
    )


class Inline(Executor):
    """A pool that does all work where it is asked: another thread would not count."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class _Made(TorchFunctionMode):
    """`torch.tensor` and `as_tensor` make what is on a device without the operations that a mode
    sees."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        makes = func is torch.tensor or func is torch.as_tensor
        if makes and kwargs.get("device") is not None and not isinstance(args[0], torch.Tensor):
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def counted_waits() -> Iterator[Waits]:
    """Count the operations within the block for which a program would wait until the device has
    done all that it was given: those that bring values or sizes from there, or look whether a
    solver went well. What is read from files goes to the device; pools of threads have this one
    alone."""
    mode, begin, take = _Waits(), PieceBuffer.__init__, PieceBuffer.take
    places = dict[PieceBuffer, torch.device]()

    def begun(buffer: PieceBuffer, *given: Any) -> None:
        begin(buffer, *given)
        places[buffer] = torch.device(given[2])

    def taken(buffer: PieceBuffer) -> torch.Tensor:
        return take(buffer).to(places[buffer], non_blocking=True)

    with pytest.MonkeyPatch.context() as patch, _Made(), mode:
        patch.setattr(PieceBuffer, "__init__", begun)
        patch.setattr(PieceBuffer, "take", taken)
        patch.setattr(threads, "one_thread_each", lambda count, device: Inline())
        yield mode.counted
