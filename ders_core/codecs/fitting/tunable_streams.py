"""What may be tuned of a matrix in a stream of `entropy`, while the codes stay."""

from __future__ import annotations

from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.gains import Gains
from ders_core.codecs.tunable import Tunable, TunedKind, Values
from ders_core.later import np, torch

ROWS, COLUMNS = "row gains", "column gains"


def tunable_stream(stream: torch.Tensor, shape: tuple[int, int], *, has_room: bool) -> Tunable:
    """The levels, but for 0, and gains of rows and columns. stream: of `level_stream`. has_room:
    whether it may have gains if it has none."""
    entries, device = level_stream.read(stream, shape), stream.device
    if not entries.sections:
        return Tunable.fixed(torch.zeros(shape, device=device))
    numbers = entries.numbers().view(-1).to(device)
    stored = torch.from_numpy(entries.levels.copy()).to(device)
    steps = [] if entries.steps is None else entries.steps.factors
    factors = [torch.from_numpy(each).to(device) for each in steps]
    values, kinds = {"levels": stored}, dict[str, TunedKind](levels="levels")
    if has_room or entries.gains is not None:
        given = entries.gains or Gains(*(np.ones(count, np.float32) for count in shape))
        for name, vector in ((ROWS, given.rows), (COLUMNS, given.columns)):
            values[name], kinds[name] = torch.from_numpy(vector.copy()).to(device), "gains"

    def decode(values: Values) -> torch.Tensor:
        levels = values["levels"] * (stored != 0)
        delta = levels.index_select(0, numbers).view(shape)
        if factors:
            delta = delta * factors[0].unsqueeze(1) * factors[1]
        return delta * values[ROWS].unsqueeze(1) * values[COLUMNS] if ROWS in values else delta

    def store(changed: Values) -> dict[str, torch.Tensor]:
        gains = None
        if any(not torch.equal(changed[name], values[name]) for name in kinds.keys() - {"levels"}):
            gains = Gains(*(changed[name].cpu().numpy() for name in (ROWS, COLUMNS)))
        return {"stream": level_stream.with_values(stream, shape, changed["levels"], gains)}

    return Tunable(decode, values, kinds, store)
