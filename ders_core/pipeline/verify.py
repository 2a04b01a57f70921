"""Verify a packed checkpoint: checksums, and its error against the original."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ders_core.checkpoint import Checkpoint, ExpertGroup, MatrixStack, OtherTensor
from ders_core.checkpoint.digest import WeightsDigest
from ders_core.checkpoint.streaming import each_matrix
from ders_core.compute.buffers import memory_is_reused
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.tasks import with_next
from ders_core.compute.threads import one_thread, threads_for
from ders_core.decompose.distortion import Squares, compare
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.inputs import unchanged_inputs
from ders_core.later import torch
from ders_core.packed.checksums import checksums
from ders_core.packed.manifest import Encoded
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup, PackedSource, PackedStack, PackedTensor
from ders_core.units import number_text

AGREEMENT = 0.01
"""Two measurements of one error differ by no larger share."""

WORKING_BYTES_A_WEIGHT = 12
"""What comparing an expert holds at most."""


@dataclass(frozen=True)
class GroupError:
    """The error of one group: ‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ over its experts. gain, noise: a and
    ‖E‖/‖Δ‖ of Δ̂ = aΔ + E with E ⟂ Δ."""

    layer: int
    projection: str
    rel_error_delta: float
    rel_error_weight: float
    gain: float
    noise: float


@dataclass(frozen=True)
class OtherError:
    """The error of a coded tensor outside the experts: ‖Ŵ−W‖/‖W‖."""

    name: str
    rel_error_weight: float


@dataclass(frozen=True)
class Verification:
    """problems: sentences. groups, others: empty if nothing was compared. tensors: how many there
    are."""

    problems: tuple[str, ...]
    groups: tuple[GroupError, ...]
    tensors: int
    others: tuple[OtherError, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "tensors": self.tensors,
            "groups": [asdict(group) for group in self.groups],
            "others": [asdict(other) for other in self.others],
        }


@unchanged_inputs()
@memory_is_reused()
def verify(
    packed: str | Path, against: str | Path | None = None, *, progress: Progress = quiet
) -> Verification:
    """Check every tensor's checksum and the config; with `against`, compare every tensor with the
    original's and measure the error of every group.

    A problem is: what is damaged or was edited after packing; an original that holds other bytes
    than were packed, anywhere; an error that is not the one that was measured when the group was
    packed, any error of a group that is lossless or was not coded, and a group that stands for
    other tensors than the original's experts. Checkpoints of format versions 1 and 2 do not know
    the weights that their groups were encoded from: of these weights the sample of
    `Store.identity` decides.
    progress counts bytes. Raises CheckpointError if one of the two cannot be opened or is written
    meanwhile, or if they are different models.
    """
    checkpoint = PackedCheckpoint(packed)
    original = open_checkpoint(against) if against is not None else None
    groups = original.groups(bool(checkpoint.manifest.recipe.get("extended"))) if original else []
    carried = checkpoint.original.carried() if original else {}
    meter = Meter(
        checkpoint.store.bytes_total
        + sum(group.nbytes for group in groups)
        + sum(tensor.nbytes for tensor in carried.values())
        + (sum(map(_original_bytes, checkpoint.manifest.others)) if original else 0),
        progress,
    )
    problems = checkpoint.checksum_problems(meter.advance) + checkpoint.config_problems()
    count = len(checkpoint.store.tensors)
    if original is None:
        return Verification(tuple(problems), (), count)
    problems += filter(None, [origin_problem(checkpoint, original)])
    problems += _unsaid_problems(checkpoint)
    problems += _carried_problems(checkpoint, original, meter)
    packed_groups = {(group.layer, group.projection): group for group in checkpoint.manifest.groups}
    unknown = packed_groups.keys() - {group.key for group in groups}
    problems += [
        f"{packed_groups[key].title}: {original.path} has no such experts, and {checkpoint.path} "
        "codes them; copy it again"
        for key in sorted(unknown)
    ]
    group_errors, other_errors = [], []
    for group, following in with_next(groups):
        if following is not None:
            following.read_ahead()
        packed_group = packed_groups.get(group.key)
        if packed_group is None:
            squares, found = _carried(checkpoint, group)
        else:
            squares, found = _compared(checkpoint, original, group, packed_group)
            found = _place_problems(checkpoint, group, packed_group) + found
        problems += found
        group_errors.append(GroupError(*group.key, *squares.relative, squares.gain, squares.noise))
        meter.advance(group.nbytes, f"compared {group.title}")
    for entry in checkpoint.manifest.others:
        tensor = _other(checkpoint, original, entry)
        squares, found = _compared(checkpoint, original, tensor, entry)
        problems += found
        other_errors.append(OtherError(entry.name, squares.relative[1]))
        meter.advance(tensor.nbytes, f"compared {tensor.title}")
    return Verification(tuple(problems), tuple(group_errors), count, tuple(other_errors))


def origin_problem(checkpoint: PackedCheckpoint, original: Checkpoint) -> str:
    """One sentence if another checkpoint was packed, or none that lies on a disk; or ""."""
    manifest = checkpoint.manifest
    if original.identity == manifest.source.identity:
        return ""
    if manifest.may_lack_original:
        return (
            f"{checkpoint.path} was trained, or saved again after a change, so it was packed from "
            f"no checkpoint on a disk, or from another than {original.path}; leave it out if "
            "there is no original"
        )
    return (
        f"{checkpoint.path} was packed from another checkpoint than {original.path}; give its "
        "original"
    )


def _unsaid_problems(checkpoint: PackedCheckpoint) -> list[str]:
    """One sentence for each coded stack of which the manifest does not say which weights it was
    encoded from, though it says that of others."""
    known = checkpoint.manifest.encoded
    return [
        f"{stack.title}: {checkpoint.path} does not say which weights it was encoded from; copy it "
        "again"
        for stack in checkpoint.manifest.stacks
        if known and stack.prefix not in known
    ]


def _other(checkpoint: PackedCheckpoint, original: Checkpoint, entry: PackedTensor) -> OtherTensor:
    """The original's tensor, cut as the packed one is."""
    tensor = original.others.get(entry.name)
    if tensor is None or (tensor.info.shape, tensor.dtype.name) != (entry.shape, entry.dtype):
        raise CheckpointError(
            f"{original.path} has no {entry.name!r} of {entry.dtype} {list(entry.shape)} outside "
            f"its experts, and {checkpoint.path} has; they are different models"
        )
    return tensor.cut_into(entry.pieces)


def _carried_problems(
    checkpoint: PackedCheckpoint, original: Checkpoint, meter: Meter
) -> list[str]:
    """One sentence for each tensor that is not the original's though it was to stay as it is."""
    problems = []
    promised, compared = checkpoint.manifest.original_checksums, []
    for name, tensor in checkpoint.original.carried().items():
        reader = original.tensors.get(name)
        if reader is None:
            problems.append(f"{original.path} has no tensor {name!r}, which was packed")
        if reader is not None and name in promised:
            compared.append(reader)
        else:
            meter.advance(tensor.nbytes, f"looked for {name}")
    for reader, found in checksums(compared):
        if found != promised[reader.name]:
            problems.append(f"{original.path} holds another {reader.name!r} than was packed")
        meter.advance(reader.nbytes, f"compared {reader.name}")
    return problems


def _original_bytes(tensor: PackedTensor) -> int:
    return math.prod(tensor.shape) * Dtype[tensor.dtype].itemsize


def encoded_anew(
    checkpoint: PackedCheckpoint, original: Checkpoint, step: Callable[[str], None]
) -> dict[str, Encoded]:
    """What the manifest is to say of each coded stack after small parts of it were changed: the
    weights that it was encoded from, and how far it is from them now. Empty where the manifest
    says nothing. step: called with a message after each stack. Raises CheckpointError if the
    original holds other weights than were packed."""
    before = checkpoint.manifest.encoded
    extended = bool(checkpoint.manifest.recipe.get("extended"))
    anew: dict[str, Encoded] = {}
    for packed in checkpoint.manifest.stacks:
        if packed.prefix not in before:
            continue
        if isinstance(packed, PackedTensor):
            stack: MatrixStack = _other(checkpoint, original, packed)
        else:
            assert isinstance(packed, PackedGroup)
            stack = original.group(packed.layer, packed.projection, extended)
        digest = WeightsDigest()
        squares = _squares(checkpoint, packed, stack, digest)
        if digest.sha256 != before[packed.prefix].sha256:
            raise CheckpointError(
                f"{stack.title}: {original.path} holds other weights than were packed"
            )
        anew[packed.prefix] = Encoded.of(digest.sha256, *squares.relative)
        step(f"measured {stack.title}")
    return anew


def _compared(
    checkpoint: PackedCheckpoint, original: Checkpoint, stack: MatrixStack, packed: PackedStack
) -> tuple[Squares, list[str]]:
    """The errors of one stack, and what is wrong with it."""
    digest = WeightsDigest()
    squares = _squares(checkpoint, packed, stack, digest)
    of_delta, of_weight = squares.relative
    encoded, where = checkpoint.manifest.encoded.get(packed.prefix), stack.title
    if encoded is not None and encoded.sha256 != digest.sha256:
        return squares, [f"{where}: {original.path} holds other weights than were packed"]
    if checkpoint.matrices.is_lossless(packed):
        if of_weight == 0:
            return squares, []
        error = number_text(of_weight)
        return squares, [f"{where}: its error is {error}, but it was packed without loss"]
    different = (
        "" if encoded is None else _difference(of_delta, of_weight, encoded, stack.dtype.torch)
    )
    if different:
        return squares, [f"{where}: {different} when it was packed; copy {checkpoint.path} again"]
    return squares, []


def _difference(of_delta: float, of_weight: float, encoded: Encoded, dtype: torch.dtype) -> str:
    """What an error is, and what it was while encoding; "" if both are as they were.

    Another device or machine may round single values of the weights to the neighbour: that is
    within `AGREEMENT`, and a small part of the dtype's own rounding.
    """
    rounding = torch.finfo(dtype).eps / 16
    share = of_weight / of_delta if of_delta else 1.0
    for name, now, before, least in (
        ("‖Ŵ−W‖/‖W‖", of_weight, encoded.rel_error_weight, rounding),
        ("‖Ŵ−W‖/‖Δ‖", of_delta, encoded.rel_error_delta, rounding / share if share else 0.0),
    ):
        if not math.isclose(now, before, rel_tol=AGREEMENT, abs_tol=least):
            return f"its error {name} is {now:.6g}, but it was {before:.6g}"
    return ""


def _squares(
    checkpoint: PackedCheckpoint, packed: PackedStack, stack: MatrixStack, digest: WeightsDigest
) -> Squares:
    """The errors of a packed stack. digest: gets the original's weights."""
    if packed.stacked != stack.shape:
        raise CheckpointError(
            f"{stack.title} has shape {list(stack.shape)} in the original and "
            f"{list(packed.stacked)} in {checkpoint.path}; they are different models"
        )
    count, out, width = stack.shape
    threads = threads_for(count, WORKING_BYTES_A_WEIGHT * out * width, torch.device("cpu"))

    def compared(number: int, weight: torch.Tensor) -> Squares:
        base = checkpoint.matrices.base(packed, number)
        return compare(checkpoint.matrices.weight(packed, number), weight, base)

    squares = Squares()
    with one_thread(), torch.inference_mode():
        for _, one in each_matrix(stack, compared, threads, seen=digest.add):
            squares += one
        if packed.has_biases:
            biases = compare(checkpoint.matrices.biases(packed), stack.read_biases())
            squares += Squares(error=biases.error)
            digest.add_biases(stack)
    return squares


def _place_problems(
    checkpoint: PackedCheckpoint, group: ExpertGroup, packed: PackedGroup
) -> list[str]:
    """One sentence if a packed group stands for other tensors, or for these in another order, than
    the original's experts are; none for biases that are carried."""
    pairs = [(packed.experts, group.experts)]
    if packed.has_biases:
        pairs.append((packed.biases, group.biases))
    for places, matrices in pairs:
        here = tuple(map(PackedSource.of, matrices))
        for expert, (place, other) in enumerate(zip_longest(places, here)):
            if place != other:
                name = repr(place.tensor) if place else "nothing"
                return [
                    f"{group.title}: {checkpoint.path} writes expert {expert} to {name}, which is "
                    "not where the original holds it; copy it again"
                ]
    return []


def _carried(checkpoint: PackedCheckpoint, group: ExpertGroup) -> tuple[Squares, list[str]]:
    """The error of a group that stays under its original names, and a sentence if it is not 0
    though no repair trained it."""
    squares = _carried_error(checkpoint, group)
    trained = {name for repair in checkpoint.manifest.repairs for name in repair.replaced}
    names = {matrix.info.name for matrix in (*group.experts, *group.biases)}
    of_weight = squares.relative[1]
    if not of_weight > 0 or names & trained:
        return squares, []
    return squares, [
        f"{group.title}: its error is {number_text(of_weight)}, but {checkpoint.path} says that it "
        "was not coded; copy it again"
    ]


def _carried_error(checkpoint: PackedCheckpoint, group: ExpertGroup) -> Squares:
    """The error of a group that stays under its original names."""
    squares = Squares()
    for matrix in (*group.experts, *group.biases):
        carried = checkpoint.original.readers.get(matrix.info.name)
        if carried is None or carried.spec != matrix.info.spec:
            raise CheckpointError(
                f"{matrix.info.name!r} is {matrix.info.dtype.name} {list(matrix.info.shape)} in "
                f"the original and not in {checkpoint.path}; they are different models"
            )
        squares += compare(matrix.within(checkpoint.original.readers).read(), matrix.read())
    return squares
