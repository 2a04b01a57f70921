"""What is told of a group or tensor that was encoded: the entry of the report, and the note beside
its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ders_core.checkpoint import ExpertGroup, MatrixStack, OtherTensor
from ders_core.pipeline.encoder import Encoding
from ders_core.pipeline.predicted import routers_behind
from ders_core.pipeline.report import OtherReport, ReportEntry
from ders_core.pipeline.staged_group import writer_of


def report_of(
    stack: MatrixStack,
    encoded: Encoding,
    others: Mapping[str, float],
    nbytes: int,
    seconds: float,
) -> ReportEntry | OtherReport:
    """others: ‖Ŵ−W‖/‖W‖ against other bases, by their names. nbytes: of what was written."""
    remark = encoded.codec.remark((stack.shape[1], stack.shape[2]))
    if isinstance(stack, OtherTensor):
        return OtherReport(
            stack.name,
            stack.kind,
            encoded.codec.label,
            stack.nbytes,
            nbytes,
            encoded.errors[1],
            seconds,
            remark,
            encoded.noise_cost,
            encoded.router_noise,
            routers_behind(stack),
            encoded.rounding,
        )
    assert isinstance(stack, ExpertGroup)
    return ReportEntry(
        *stack.key,
        encoded.codec.label,
        stack.nbytes,
        nbytes,
        *encoded.errors,
        seconds,
        encoded.base,
        others,
        encoded.output,
        remark,
        encoded.own.gain,
        encoded.own.noise,
        encoded.noise_cost,
        encoded.router_noise,
        encoded.base_label,
        encoded.rounding,
        encoded.effective_gain,
    )


def told_of(
    encoded: Encoding,
    report: ReportEntry | OtherReport,
    checksums: Mapping[str, str],
    run: str,
) -> dict[str, Any]:
    """checksums: by tensors' names. run: the name of the run."""
    codecs, uses = encoded.codec.dump()
    form = encoded.form
    return {
        "entry": asdict(report),
        "codec": codecs,
        "uses": uses,
        "lengths": encoded.lengths,
        "bases": encoded.bases,
        "base_codec": form.codec.dump() if form is not None and form.is_coded else None,
        "base_lengths": form.lengths if form is not None and form.is_coded else {},
        "without_base": form is None and not encoded.codec.keeps,
        "checksums": checksums,
        "by": writer_of(run),
    }
