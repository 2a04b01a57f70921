"""Parameters and stored results of every kind of job: of today, and of earlier versions."""

from __future__ import annotations

from typing import Any

MEASURED = {
    "tokens": 511,
    "perplexity": 12.5,
    "reference_perplexity": 12.0,
    "kl": 0.25,
    "kl_low": 0.2,
    "kl_high": 0.3,
    "kl_p95": 0.9,
    "kl_p99": 2.5,
    "top1_agreement": 0.9,
    "routing_agreement": 0.8,
}
QUALITY: dict[str, Any] = {
    **MEASURED,
    "domains": [
        MEASURED | {"name": "code", "kl": 0.4, "kl_low": 0.35, "kl_high": 0.45},
        MEASURED | {"name": "prose", "kl": 0.1, "kl_low": 0.05, "kl_high": 0.15},
    ],
    "worst": [
        {
            "domain": "code",
            "before": "def f(",
            "came": "x",
            "original": "x",
            "model": "self",
            "kl": 3.5,
        }
    ],
    "dtype": "float32",
    "device": "CPU",
    "seconds": 1.5,
}
REPAIRED = {
    "steps": 300,
    "tokens": 614_400,
    "trained": {"scales": 1000, "bases": 20_000},
    "kl_before": {"mean": 0.06, "low": 0.05, "high": 0.07},
    "kl_after": {"mean": 0.009, "low": 0.008, "high": 0.01},
    "left_out": ["x stays as it is: it is no matrix of the model's"],
    "repeated": 1,
    "resumed": "",
}
ONE_TEXT = QUALITY | {"domains": [], "worst": []}
EARLIER = {
    key: value
    for key, value in QUALITY.items()
    if key not in {"kl_low", "kl_high", "kl_p95", "kl_p99", "domains", "worst"}
}
"""Before KL had an interval, and texts had names."""

WITHOUT_DTYPE = {key: value for key, value in EARLIER.items() if key != "dtype"}
VERIFIED = {"layer": 0, "projection": "up", "rel_error_delta": 0.2, "rel_error_weight": 0.01}
VERIFICATION = {
    "ok": True,
    "problems": [],
    "tensors": 9,
    "groups": [VERIFIED | {"gain": 0.9, "noise": 0.17}],
}
ENTRY = {
    "layer": 0,
    "projection": "up",
    "codec": "4-bit",
    "bytes_before": 1000,
    "bytes_after": 300,
    "rel_error_delta": 0.2,
    "rel_error_weight": 0.01,
    "seconds": 0.5,
}
LATER = {
    "base": "mean",
    "other_bases": {"median": 0.2},
    "rel_error_output": None,
    "remark": "",
    "gain": 0.9,
    "noise": 0.17,
    "noise_cost": 0.1,
    "router_noise": 0.01,
    "base_codec": "keep",
    "rounding": 0.02,
    "effective_gain": 0.95,
}
"""What entries of earlier versions lack."""

OTHER = {
    "name": "lm_head.weight",
    "kind": "head",
    "codec": "8-bit",
    "bytes_before": 2000,
    "bytes_after": 1100,
    "rel_error_weight": 0.004,
    "seconds": 0.1,
    "remark": "",
    "noise_cost": 0.001,
    "router_noise": None,
    "before": -1,
    "rounding": None,
}
REPORT = {
    "entries": [ENTRY | LATER],
    "bytes_before": 1000,
    "bytes_after": 300,
    "device": "cpu",
    "seconds": 1.0,
    "left_aside": [],
    "linked_out": [],
    "renewed": 0,
    "ratio": 0.3,
    "predicted_kl": 0.2,
    "others": [OTHER],
    "missed": "the weight files take 300 B, 50 B more than the budget of bytes 250",
}
SCORE = {
    "task": "endings",
    "metric": "acc",
    "value": 0.5,
    "error": 0.25,
    "original": 0.75,
    "original_error": 0.25,
    "samples": 4,
}
RUN = {
    "packed": "/w/runs/00001/packed",
    "report": REPORT,
    "verification": VERIFICATION,
    "quality": QUALITY,
    "tasks": [SCORE],
    "bytes_before": 1000,
    "bytes_after": 300,
    "ratio": 0.3,
    "device": "cpu",
}
FIGURES = {
    "out": "/w/runs/00002/packed",
    "label": "LM 4",
    "steps": 12,
    "parameters": 200_000,
    "trained": 50_000,
    "dense_bytes": 400_000,
    "packed_bytes": 500_000,
    "moe_bytes": 1_000_000,
    "start_difference": 0.0,
    "dense_perplexity": 40.0,
    "perplexity": 30.0,
    "peak_memory": 3 * 10**9,
    "device": "CPU",
    "seconds": 12.5,
    "precision": "bfloat16",
    "resumed": "",
}

TRIAL = {
    "role": "tuned",
    "form": "",
    "recipe": "name: tuned",
    "predicted_kl": 0.2,
    "foretold_bytes": 290,
    "size": 300.0,
    "most": 310.0,
    "keeps": True,
    "costs": {"quantized": 0.2},
    "measured": {"nbytes": 300, "expert_bytes": 200, "quality": QUALITY},
}

POINT = {
    "role": "safe",
    "aim": 0.001,
    "asked": 0.001,
    "recipe": "name: pilot-1-safe",
    "predicted_kl": 0.0009,
    "foretold_bytes": 290,
    "measured": TRIAL["measured"],
    "answers": ["the mill turns"],
}
PILOT = {
    "name": "moe",
    "identity": "abc",
    "verdict": "upcycled",
    "reason": "The experts share one start.",
    "bytes_total": 1000,
    "calibration": "/w/runs/00005/work/calibration.safetensors",
    "tokens": 12288,
    "proved": 8192,
    "texts": "calibrated on one text, and measured on another",
    "curve": [[100, 0.5], [600, 0.0]],
    "points": [POINT],
    "prompts": [{"prompt": "There", "came": " is", "original": " was"}],
    "risks": [{"what": "One text.", "fallback": "Measure on yours."}],
}
SAID = {"text": " mill", "other": None, "chance": 0.5, "other_chance": 0.25, "kl": 0.1}
REPLY = {"tokens": [SAID, SAID | {"text": ".", "other": " and"}], "ended": False}
REPLIES = {
    "prompt": "The river runs",
    "prompt_tokens": 3,
    "original": REPLY,
    "compressed": REPLY,
    "same": 1,
    "temperature": 0.0,
    "seed": None,
    "dtype": "float32",
    "device": "CPU",
    "seconds": 1.5,
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "analyze": {"checkpoint": "/models/moe"},
    "ask": {"packed": "/w/runs/00001/packed", "original": "/models/moe", "prompt": "The river"},
    "calibrate": {"checkpoint": "/models/moe", "text": "/t.txt"},
    "compare": {
        "original": "/models/moe",
        "models": [{"name": "2 bit", "packed": "/w/runs/00001/packed"}],
        "prompts": ["The river"],
    },
    "evaluate": {"model": "/models/moe", "text": {"code": ["/c.txt"], "prose": "/p.txt"}},
    "export": {"packed": "/w/runs/00001/packed", "out": "/w/exports/small"},
    "pilot": {"checkpoint": "/models/moe", "text": {"code": "/c.txt", "prose": ["/p.txt"]}},
    "prove": {
        "checkpoint": "/models/moe",
        "calibration": "/c.safetensors",
        "text": "/t.txt",
        "budget": "40%",
    },
    "push": {"directory": "/w/exports/small", "name": "me/small-moe"},
    "repair": {"checkpoint": "/w/runs/00001/packed", "original": "/models/moe", "text": "/t.txt"},
    "run": {"checkpoint": "/models/moe", "recipe": "name: x"},
    "series": {"checkpoint": "/models/moe", "calibration": "/c.safetensors", "text": "/t.txt"},
    "tune": {"checkpoint": "/models/moe", "budget": "40%", "calibration": "/c.safetensors"},
    "upcycle": {"dense": "/models/dense", "config": "name: x"},
}
RESULTS: dict[str, tuple[dict[str, Any], ...]] = {
    "analyze": ({"identity": "abc", "directory": "/w/analysis/abc"},),
    "ask": (REPLIES,),
    "calibrate": (
        {
            "path": "/w/runs/00001/calibration.safetensors",
            "tokens": 8192,
            "dtype": "float32",
            "gradients": True,
            "others": 9,
            "each_expert": True,
        },
        {
            "path": "/w/c.safetensors",
            "tokens": 8192,
            "dtype": "float32",
            "gradients": True,
            "others": 9,
        },
        {"path": "/w/c.safetensors", "tokens": 8192, "dtype": "float32", "gradients": True},
    ),
    "compare": ({"replies": [[REPLIES]], "identities": {"/models/moe": "abc"}},),
    "evaluate": (
        QUALITY,
        ONE_TEXT,
        EARLIER,
        {"tokens": 10, "perplexity": 2.0, "device": "CPU", "seconds": 1.0},
    ),
    "export": (
        {
            "out": "/w/exports/small",
            "format": "packed",
            "bytes": 300,
            "checks": [{"name": "it opens", "ok": True, "detail": "9 tensors"}],
        },
    ),
    "pilot": ({"pilot": PILOT},),
    "prove": (
        {
            "bound": "40 % of the original",
            "sentence": "of 2 recipes that were measured the tuned one is best",
            "trials": [TRIAL, TRIAL | {"role": "uniform", "form": "quantized", "keeps": False}],
            "best": 0,
            "factors": {"quantized": 1.25},
            "remarks": ["quantized costs 1.7 times what was predicted"],
            "bytes_before": 1000,
        },
    ),
    "push": (
        {
            "address": "https://huggingface.co/me/small-moe",
            "private": True,
            "bytes": 300,
            "files": 5,
            "was_there": False,
        },
    ),
    "repair": (
        {
            "packed": "/w/runs/00003/packed",
            "repaired": REPAIRED,
            "quality": QUALITY,
            "verification": VERIFICATION,
            "bytes_before": 1_000_000,
            "bytes_after": 300_000,
            "ratio": 0.3,
            "device": "cpu",
        },
    ),
    "run": (
        RUN,
        RUN | {"quality": None},
        RUN | {"quality": WITHOUT_DTYPE},
        RUN | {"report": REPORT | {"entries": [ENTRY]}},  # reports named no base once
        RUN | {"verification": VERIFICATION | {"groups": [VERIFIED]}},  # nor a gain
        RUN | {"verification": {"ok": True}},
        RUN | {"report": {key: REPORT[key] for key in REPORT if key != "linked_out"}},
        RUN | {"report": {key: REPORT[key] for key in REPORT if key != "others"}},
        RUN | {"quality": EARLIER},
        {key: RUN[key] for key in RUN if key != "tasks"},
    ),
    "series": (
        {
            "tuned": [TRIAL],
            "uniform": [TRIAL | {"role": "uniform", "form": "quantized"}],
            "cliffs": [{"small": 300, "large": 400, "kl_small": 0.4, "kl_large": 0.1, "rise": 3.5}],
            "factors": {"quantized": 1.25},
            "bytes_before": 1000,
        },
    ),
    "tune": (
        {
            "recipe": "/w/runs/00004/recipe.yaml",
            "calibration": "/c.safetensors",
            "bytes_before": 1_000_000,
            "bytes_after": 400_000,
            "predicted_kl": 0.002,
            "gap": 0.0001,
            "rare": ["layer 0: 1 of 8 experts saw fewer than 100 tokens"],
            "units": [{"unit": "layer 0, gate", "codec": "lossless", "bytes": 9, "bits": 3.0}],
        },
    ),
    "upcycle": (
        {
            "packed": "/w/runs/00002/packed",
            "upcycled": FIGURES,
            "verification": VERIFICATION | {"groups": []},
            "bytes_before": 1_000_000,
            "bytes_after": 500_000,
            "ratio": 0.5,
            "device": "cpu",
        },
    ),
}
