"""Clusters: which experts of a group share a start, so that each set of them gets its own base.

One base serves experts that started from one FFN. Where they started from several (fine-grained
upcycling, merges of unlike models), a base for each set of alike experts leaves smaller deltas.
All of it follows from the Gram matrix of the deltas: the weights are read once, in chunks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.streaming import slabs
from ders_core.decompose.ward import ward
from ders_core.errors import CheckpointError, RecipeError
from ders_core.later import np, torch

CHUNK_VALUES = 1 << 18
"""Values of all experts that are handled at a time, so that they stay in cache."""
NOTHING = 1e-12
"""Energy below this share of that of one base is 0: float64 sums of squares have no digits there,
and a base in 16 bits cannot distinguish such experts."""


@dataclass(frozen=True)
class Clusters:
    """The sets of experts that share a base.

    assignment: the cluster of each expert, numbered by first member. energy: ΣΔ² left when each
    cluster's base is its experts' mean. candidates: that energy for 1, 2, ... K bases, as Ward's
    tree finds them; for the chosen number, after experts were moved.
    """

    assignment: tuple[int, ...]
    energy: float
    candidates: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return max(self.assignment) + 1

    @property
    def gain(self) -> float:
        """Share of one base's ΣΔ² that is left; 1 for one base."""
        return self.energy / self.candidates[0] if self.candidates[0] else 1.0

    def members(self) -> tuple[tuple[int, ...], ...]:
        """The experts of each cluster."""
        return tuple(
            tuple(expert for expert, number in enumerate(self.assignment) if number == cluster)
            for cluster in range(self.count)
        )


def check_finite(group: ExpertGroup, weights: torch.Tensor) -> None:
    """Check weights of all experts, `[K, n]`. Raises CheckpointError that names the first expert
    with one that is not finite."""
    finite = torch.isfinite(weights)
    if not bool(finite.all()):
        raise not_finite(group, int((~finite).any(1).nonzero()[0]))


def not_finite(group: ExpertGroup, expert: int) -> CheckpointError:
    """The error for an expert with a weight that is not finite."""
    return CheckpointError(
        f"{group.matrix_name(expert)} holds values that are not finite (NaN or infinity); "
        "the checkpoint is damaged"
    )


def delta_gram(group: ExpertGroup, device: torch.device | str = "cpu") -> np.ndarray:
    """⟨Δ_i, Δ_j⟩ of the experts' deltas against their mean, `[K, K]` float64.

    Centred and multiplied in float64, because two experts can be a hair apart and both far from the
    mean. Raises CheckpointError for non-finite weights.
    """
    lying = group.as_it_lies()
    experts, _, width = lying.shape
    step = max(1, CHUNK_VALUES // max(experts * width, 1))
    gram = torch.zeros(experts, experts, dtype=torch.float64)
    for _, slab in slabs(lying, device):
        for part in slab.split(step, 1):
            deltas = part.flatten(1).double()
            check_finite(group, deltas)
            deltas -= deltas.mean(0)
            gram += (deltas @ deltas.T).cpu()
    return gram.numpy()


def energy_of(gram: np.ndarray, assignment: np.ndarray) -> float:
    """ΣΔ² left with a base for each cluster: Σ_C (Σ_{k∈C} G_kk − Σ_{i,j∈C} G_ij / |C|).

    gram: `[K, K]`, of vectors from any one origin. assignment: `[K]`, clusters from 0 on.
    """
    member = np.eye(int(assignment.max()) + 1)[assignment]  # [K, B]
    means = np.einsum("kb,kb->b", gram @ member, member) / member.sum(0)
    return float(max(np.trace(gram) - means.sum(), 0.0))


def cluster(gram: np.ndarray, count: int | None = None, bits: int = 16) -> Clusters:
    """Cluster experts into bases so that the deltas' energy is small.

    gram: `[K, K]` float64, of the experts' deltas against any one base. count: how many bases; None
    chooses. bits: of a stored weight of a base.

    Ward's hierarchical clustering joins, one pair of clusters at a time, those whose
    union adds least to ΣΔ² = Σ_C Σ_{k∈C} ‖W_k − mean_C‖²: the very energy that is to be coded.
    Single experts then move for as long as that lowers it (Hartigan 1975). No randomness; equal
    experts are taken in their order.

    The number of bases: B bases cost bits·B/K for each of the experts' weights. What the deltas
    get for R bits a weight leaves an error of E_B·2^(−2R) (Shannon's rate-distortion function of a
    Gaussian source, Cover and Thomas, Elements of Information Theory, theorem 10.3.2). At equal
    total bits one more base, which takes bits/K from R, pays only if it divides E by more than
    2^(2·bits/K). So B minimises log2(E_B) + 2·bits·(B−1)/K; the fewest bases win a tie. At most K/2
    bases are chosen: beyond, bases alone take half of the experts' bytes, and a base serves fewer
    than two experts on average, so that little is left to share. With K bases every expert would
    be a base by itself, kept whole.

    Raises RecipeError for a count that is not between 1 and K−1 (1 for a single expert).
    """
    experts = len(gram)
    most = max(experts - 1, 1)
    if count is not None and not 1 <= count <= most:
        raise RecipeError(
            f"{count} bases for {experts} experts: give a number from 1 to {most}, or auto"
        )
    norms = np.diag(gram)  # ‖W_k‖²
    squares = np.maximum(norms[:, None] + norms[None, :] - gram - gram.T, 0.0)
    tree = ward(squares)
    one_base = energy_of(gram, np.zeros(experts, dtype=int))
    floor = NOTHING * max(one_base, float(np.trace(gram)))
    grown = np.concatenate([[0.0], np.cumsum(tree.costs)])[::-1]  # for 1, 2, ... K bases
    energies = np.where(grown > floor, grown, 0.0)
    energies[0] = one_base if one_base > floor else 0.0
    if count is None:
        count = _fewest_best(energies, experts, bits)
    assignment = _by_first_member(tree.cut(count))
    if 1 < count < experts:
        assignment = _by_first_member(_moved(gram, assignment, floor))
    energy = energy_of(gram, assignment)
    energies[count - 1] = energy if energy > floor else 0.0
    return Clusters(
        tuple(int(number) for number in assignment),
        float(energies[count - 1]),
        tuple(float(value) for value in energies),
    )


def _fewest_best(energies: np.ndarray, experts: int, bits: int) -> int:
    """The B ≤ K/2 that minimises log2(E_B) + 2·bits·(B−1)/K."""
    if energies[0] == 0:
        return 1
    considered = energies[: max(experts // 2, 1)]
    logs = np.log2(considered, out=np.full(len(considered), -np.inf), where=considered > 0)
    return int(np.argmin(logs + 2 * bits * np.arange(len(considered)) / experts)) + 1


def _moved(gram: np.ndarray, assignment: np.ndarray, floor: float) -> np.ndarray:
    """Move the one expert that lowers the energy most, again and again; at most K moves.

    Taking expert k out of its cluster C saves |C|/(|C|−1)·‖W_k − mean_C‖², putting it into another
    costs |C|/(|C|+1)·‖W_k − mean_C‖². No expert leaves a cluster of one.
    """
    assignment = assignment.copy()
    everyone = np.arange(len(gram))
    norms = np.diag(gram)  # ‖W_k‖²
    for _ in everyone:
        member = np.eye(int(assignment.max()) + 1)[assignment]  # [K, B]
        size = member.sum(0)
        along = gram @ member
        means = np.einsum("kb,kb->b", along, member) / size**2  # ‖mean_C‖²
        apart = np.maximum(norms[:, None] - 2 * along / size + means, 0.0)  # ‖W_k − mean_C‖²
        alone = size[assignment] == 1
        left = np.maximum(size[assignment] - 1, 1)
        saved = apart[everyone, assignment] * size[assignment] / left
        added = apart * size / (size + 1)
        added[everyone, assignment] = np.inf
        gain = np.where(alone, -np.inf, saved - added.min(1))
        best = int(np.argmax(gain))
        if gain[best] <= floor:
            break
        assignment[best] = int(added[best].argmin())
    return assignment


def _by_first_member(labels: np.ndarray) -> np.ndarray:
    """Number clusters in the order in which their first experts come."""
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels.tolist()])
