"""The quantized formats that are not read, by the names they give themselves and their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.tensor import TensorReader

ORIGINAL = "give the bfloat16, float16 or float32 original"
INTEGERS = (Dtype.U8, Dtype.I8, Dtype.I16, Dtype.U16, Dtype.I32, Dtype.U32)

Sign = Mapping[str, tuple[Dtype, ...]]
"""Endings that the names of tensors next to one another have, with the dtypes they may have there
(none: any)."""

I8, U8, I32, U32 = (Dtype.I8,), (Dtype.U8,), (Dtype.I32,), (Dtype.U32,)
E8M0 = (Dtype.F8_E8M0, Dtype.U8)


@dataclass(frozen=True)
class Refused:
    """A format that is not read.

    methods: values of quant_method that name it. signs: any of them gives it away. tool: what can
    turn it into plain numbers, where that is known.
    """

    name: str
    methods: tuple[str, ...] = ()
    signs: tuple[Sign, ...] = ()
    tool: str = ""

    @property
    def advice(self) -> str:
        return ORIGINAL + (f", or dequantize it first with {self.tool}" if self.tool else "")


BITSANDBYTES_ENDINGS = (
    ".absmax",
    ".quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
    ".SCB",
    ".weight_format",
)
DEQUANTIZE = "transformers (model.dequantize() and save_pretrained)"

# Where several fit, the first is named.
REFUSED: tuple[Refused, ...] = (
    Refused(
        "GGUF", ("gguf",), ({".qweight_type": ()},), "transformers (from_pretrained(gguf_file=…))"
    ),
    Refused(
        "GPTQ",
        ("gptq", "gptq_marlin", "marlin"),
        ({".qweight": I32, ".g_idx": ()},),
        "GPTQModel",
    ),
    Refused("AutoRound", ("auto-round", "auto_round", "intel/auto-round"), (), "auto-round"),
    Refused("AWQ", ("awq", "awq_marlin"), ({".qweight": (), ".qzeros": ()},), "AutoAWQ"),
    Refused(
        "compressed-tensors",
        ("compressed-tensors", "compressed_tensors", "sparseml"),
        (
            {".weight_packed": ()},
            {".bitmask": (), ".compressed": ()},
            {".weight": I8, ".weight_scale": ()},
        ),
        "transformers (CompressedTensorsConfig(dequantize=True) and save_pretrained)",
    ),
    Refused(
        "bitsandbytes",
        ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"),
        tuple({ending: ()} for ending in BITSANDBYTES_ENDINGS),
        DEQUANTIZE,
    ),
    Refused("SINQ", ("sinq",), ({".W_q": (), ".meta": ()},)),
    Refused("HQQ", ("hqq",), ({".W_q": ()},), "hqq (HQQLinear.dequantize)"),
    Refused("EETQ", ("eetq",), ({".weight": I8, ".weight_scales": ()},)),
    Refused(
        "quanto",
        ("quanto", "optimum-quanto"),
        ({".weight._data": ()}, {".weight._scale": ()}),
        "optimum-quanto",
    ),
    Refused("torchao", ("torchao",), ({"_qdata": ()}, {":_data:int_data": ()}), "torchao"),
    Refused("AQLM", ("aqlm",), ({".codes": (), ".codebooks": ()},), "aqlm"),
    Refused(
        "VPTQ",
        ("vptq",),
        ({".centroids.weight": (), ".indices": ()}, {".centroids": (), ".indices": ()}),
        "vptq",
    ),
    Refused(
        "NVFP4 (NVIDIA ModelOpt)",
        ("modelopt", "modelopt_fp4", "modelopt_mixed", "nvfp4", "petit_nvfp4"),
        ({"weight_scale_2": ()}, {".weight_sf": (), ".weight_global_scale": ()}),
        "NVIDIA ModelOpt",
    ),
    Refused("FBGEMM fp8", ("fbgemm_fp8",), ({".input_scale_ub": ()},), "fbgemm-gpu"),
    Refused("Quark", ("quark",), ({".weight": U8, ".weight_scale": U8},), "AMD Quark"),
    Refused("BitNet", ("bitnet",), ({".weight": U8, ".weight_scale": ()},)),
    Refused("SpQR", ("spqr",), ({".dense_weights": ()},)),
    Refused("HIGGS", ("higgs",), ({".tables2": ()},), DEQUANTIZE),
    Refused("FP-Quant", ("fp_quant",), ({".forward_hadamard_matrix": ()}, {".dqweight": ()})),
    Refused("Four Over Six", ("fouroversix",)),
    Refused(
        "MLX",
        ("mlx",),
        ({".weight": U32, ".scales": (), ".biases": ()},),
        "mlx-lm (mlx_lm.convert --dequantize)",
    ),
    Refused("Metal affine", ("metal",), ({".weight": U32, ".scales": (), ".qbiases": ()},)),
    Refused(
        "Gemma's packed integers",
        ("gemma",),
        ({".weight": (*U8, *I8), ".input_activation_scale": ()},),
    ),
    Refused("EXL3", ("exl3",), ({".trellis": (), ".suh": ()},)),
    Refused("EXL2", ("exl2",), ({".q_weight": (), ".q_scale": ()},)),
    Refused("QuIP#", ("quip", "quip_sharp"), ({".Qidxs": ()},)),
    Refused("DeepSeek's fp4 experts", (), ({".weight": I8, ".scale": E8M0},)),
)


def refuse_method(method: str) -> NoReturn:
    """Raise CheckpointError for a quant_method that is not read."""
    known = next((refused for refused in REFUSED if method in refused.methods), None)
    if known is None:
        raise CheckpointError(
            f"config.json says that the weights are quantized by {method!r}, which is not known "
            f"here; {ORIGINAL}, or remove quantization_config if they are not quantized"
        )
    raise CheckpointError(
        f"config.json says that the weights are quantized by {method!r} ({known.name}), which is "
        f"not read; {known.advice}"
    )


def refuse_tensors(
    tensors: Mapping[str, TensorReader], one_of_each: Mapping[str, TensorReader]
) -> None:
    """Raise CheckpointError if tensors of a format that is not read are in the checkpoint.

    one_of_each: one of each kind of them (see `scheme.one_of_each`).
    """
    kinds = _kinds(one_of_each)
    for refused in REFUSED:
        for sign in refused.signs:
            tensor = _find(sign, kinds, tensors)
            if tensor is not None:
                raise CheckpointError(
                    f"{tensor.file_name}: {tensor.name!r} shows that the weights are quantized as "
                    f"{refused.name}, which is not read; {refused.advice}"
                )
    if not any(_is_odd(info) for info in kinds):
        return
    for info in tensors.values():
        if "expert" in info.name and _is_odd(info):
            raise CheckpointError(
                f"{info.file_name}: {info.name!r} is stored as {info.dtype.name}, in a quantized "
                f"form that is not known here; {ORIGINAL}"
            )


def _is_odd(info: TensorReader) -> bool:
    """Whether an expert's tensor would be no plain weight."""
    if info.dtype == Dtype.F8_E5M2:
        return True
    is_weight = info.name.rpartition(".")[2] == "weight"
    return info.dtype in INTEGERS and len(info.shape) >= 2 and is_weight


def _kinds(one_of_each: Mapping[str, TensorReader]) -> list[TensorReader]:
    """One tensor for each dtype and last part of a name: few, however many experts there are."""
    kinds = {
        (name.rpartition(".")[2], info.dtype, len(info.shape) > 1): info
        for name, info in one_of_each.items()
    }
    return list(kinds.values())


def _find(
    sign: Sign, kinds: Iterable[TensorReader], tensors: Mapping[str, TensorReader]
) -> TensorReader | None:
    """A tensor with the sign's first ending whose neighbours have the other ones."""
    ending, dtypes = next(iter(sign.items()))
    for info in kinds:
        if info.name.endswith(ending) and (not dtypes or info.dtype in dtypes):
            stem = info.name.removesuffix(ending)
            beside = ((tensors.get(stem + other), dtypes) for other, dtypes in sign.items())
            if all(i is not None and (not dtypes or i.dtype in dtypes) for i, dtypes in beside):
                return info
    return None
