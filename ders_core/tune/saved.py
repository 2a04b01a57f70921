"""Scores as they lie in a file, which anybody may have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ders_core.checkpoint.layouts import Projection
from ders_core.checkpoint.others import Kind
from ders_core.codecs import make_codec
from ders_core.errors import CheckpointError, CodecError, sentence_of
from ders_core.files.aside import locked_aside
from ders_core.files.json_object import read_json
from ders_core.files.place_errors import writing
from ders_core.files.untrusted_json import EVERY_KEY
from ders_core.later import np
from ders_core.tune.coupling import Coupling, TippingCurve
from ders_core.tune.scores import Candidate, RareExperts, Scores, UnitScores
from ders_core.tune.units import Unit

VERSION = 4
"""In scores of version 1, errors of a head's rare tokens cost as much as those of the others; in
those of version 2, too much was missing of codes that know their inputs; in those of version 3,
streams of many levels were told too short."""

ADVICE = "remove it, and it is made again"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Candidate(_Strict):
    codec: dict[str, Any]
    bytes: int = Field(ge=0)
    exact: bool
    noise: float = Field(ge=0)
    output: float = Field(ge=0)
    router: float = Field(ge=0)
    gain: float
    error: float = Field(ge=0)


class _Unit(_Strict):
    part: Literal["deltas", "base", "tensor"]
    layer: int | None
    projection: Projection | Literal[""]
    expert: int | None
    name: str
    kind: Kind | None
    weights: int = Field(gt=0)
    nbytes: int = Field(ge=0)
    read: float = Field(ge=0)
    before: int
    candidates: list[_Candidate] = Field(min_length=1)


class _Curve(_Strict):
    layer: int
    density: float = Field(ge=0)
    swap: float = Field(ge=0)
    least: float = Field(ge=0)
    costs: list[float]


class _Rare(_Strict):
    layer: int
    rare: list[int]
    experts: int


class _File(_Strict):
    version: Literal[4]
    identity: str
    calibration: str
    per_expert: bool
    bytes_total: int
    bytes_beside: int
    tokens: int = Field(gt=0)
    shrinkage: list[list[float]]
    tipping: list[_Curve]
    rare: list[_Rare]
    unmeasured: list[str]
    units: list[_Unit] = Field(min_length=1)


def save_scores(scores: Scores, file: Path) -> None:
    """Write or replace the file. Raises OutputError."""
    coupling = scores.coupling
    content = _File(
        version=VERSION,
        identity=scores.identity,
        calibration=scores.calibration,
        per_expert=scores.per_expert,
        bytes_total=scores.bytes_total,
        bytes_beside=scores.bytes_beside,
        tokens=coupling.tokens,
        shrinkage=coupling.shrinkage.tolist(),
        tipping=[_Curve(**{**vars(each), "costs": list(each.costs)}) for each in coupling.tipping],
        rare=[_Rare(**{**vars(each), "rare": list(each.rare)}) for each in scores.rare],
        unmeasured=list(scores.unmeasured),
        units=[_of_unit(each) for each in scores.units],
    )
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked_aside(file, sync=False) as aside:
            aside.write_text(content.model_dump_json(), encoding="utf-8")


def load_scores(file: Path) -> Scores:
    """Raises CheckpointError if the file is missing, damaged, or of another version."""
    fields = read_json(file, once=EVERY_KEY)
    if fields.get("version") != VERSION:
        raise CheckpointError(
            f"{file} holds scores of version {str(fields.get('version'))[:20]}; {ADVICE}"
        )
    try:
        content = _File.model_validate(fields)
        units = tuple(_scored(unit) for unit in content.units)
    except ValidationError as error:
        raise CheckpointError(f"{file}: {sentence_of(error)}; {ADVICE}") from error
    except CodecError as error:
        raise CheckpointError(f"{file}: {error}; {ADVICE}") from error
    columns = sum(scored.unit.part == "deltas" for scored in units)
    if {len(row) for row in content.shrinkage} != {columns}:
        raise CheckpointError(f"{file}: shrinkage is not of {columns} columns; {ADVICE}")
    tipping = tuple(
        TippingCurve(each.layer, each.density, each.swap, each.least, tuple(each.costs))
        for each in content.tipping
    )
    return Scores(
        content.identity,
        content.calibration,
        content.per_expert,
        content.bytes_total,
        content.bytes_beside,
        units,
        Coupling(content.tokens, np.array(content.shrinkage), tipping),
        tuple(RareExperts(each.layer, tuple(each.rare), each.experts) for each in content.rare),
        tuple(content.unmeasured),
    )


def _of_unit(scored: UnitScores) -> _Unit:
    candidates = [
        _Candidate(
            codec=each.codec.dump(),
            bytes=each.nbytes,
            exact=each.is_exact,
            noise=each.noise,
            output=each.output,
            router=each.router,
            gain=each.gain,
            error=each.error,
        )
        for each in scored.candidates
    ]
    fields = vars(scored.unit)
    return _Unit(**fields, read=scored.read, before=scored.before, candidates=candidates)


def _scored(unit: _Unit) -> UnitScores:
    candidates = tuple(
        Candidate(
            make_codec(each.codec),
            each.bytes,
            each.exact,
            each.noise,
            each.output,
            each.router,
            each.gain,
            each.error,
        )
        for each in unit.candidates
    )
    names = ("part", "layer", "projection", "expert", "name", "kind", "weights", "nbytes")
    fields = {name: getattr(unit, name) for name in names}
    return UnitScores(Unit(**fields), candidates, unit.read, unit.before)
