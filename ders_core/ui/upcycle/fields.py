"""Label, meaning and range of each number on the Upcycle page; a form says those of its own."""

from __future__ import annotations

from ders_core.upcycle.fields import Number

MOST = 1_000_000

NUMBERS = {
    "experts": Number("Experts", "N: into so many experts each chosen FFN is copied.", 2, 1024, 1),
    "top_k": Number(
        "Top-k",
        "The router sends each token to so many experts and weighs what they say.",
        1,
        1024,
        1,
    ),
    "window": Number(
        "Window, tokens",
        "The text is cut into windows of so many tokens of context.",
        2,
        MOST,
        64,
    ),
    "steps": Number("Steps", "So many times the weights are changed.", 1, 10 * MOST, 50),
    "batch": Number(
        "Batch, windows", "Windows in one forward pass; activations grow with it.", 1, 4096, 1
    ),
    "accumulation": Number(
        "Accumulation", "Forward passes in a step: a larger batch without its memory.", 1, 4096, 1
    ),
    "learning_rate": Number("Learning rate", "AdamW's, at its highest.", 0.0, 1.0, 1e-5),
    "warmup": Number("Warm-up, steps", "Steps in which the rate rises from 0.", 0, MOST, 5),
    "router_std": Number(
        "Router's spread", "Standard deviation of its first weights.", 0.0, 10.0, 0.01
    ),
    "balance": Number(
        "Balance weight",
        r"Of the term $N\sum_i f_i P_i$ in the loss, which keeps the experts' loads even (Switch); "
        "it is 1 where they are.",
        0.0,
        100.0,
        0.01,
    ),
    "noise": Number(
        "Start noise",
        "What is added to each expert at the start, relative to the weight's spread; with 0 the "
        "MoE starts as the dense model.",
        0.0,
        10.0,
        0.01,
    ),
    "base_rate": Number(
        "Shared weight's rate",
        "Learning rate of the shared weight, where it is another.",
        0.0,
        1.0,
        1e-5,
        "the same",
    ),
    "router_rate": Number(
        "Routers' rate",
        "Learning rate of the routers, where it is another.",
        0.0,
        1.0,
        1e-5,
        "the same",
    ),
    "weight_decay": Number("Weight decay", "AdamW's pull towards 0.", 0.0, 10.0, 0.01),
    "clip": Number(
        "Gradient clip",
        "The most that the gradient's norm may be; 0 for no limit.",
        0.0,
        1000.0,
        0.1,
    ),
    "save_every": Number(
        "Save every, steps",
        "A training checkpoint, from which a stopped run goes on.",
        1,
        MOST,
        50,
    ),
    "keep": Number("Saves kept", "Older training checkpoints go.", 1, 1000, 1),
    "measure_every": Number(
        "Measure every",
        "Steps between two measurements on the held-out text; 0: at the end alone.",
        0,
        MOST,
        50,
    ),
    "heldout_tokens": Number(
        "Held-out tokens",
        "So much of the held-out text is measured, at the most.",
        2,
        100 * MOST,
        1024,
    ),
    "seed": Number(
        "Seed", "Of positions, first values and the order of the text.", 0, 2**31 - 1, 1
    ),
}
"""By the name of the choice."""
