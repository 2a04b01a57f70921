"""Label, meaning and range of the numbers on the Upcycle page, except those of the forms."""

from __future__ import annotations

from ders_core.upcycle.fields import Number

MOST = 1_000_000

NUMBERS = {
    "experts": Number("Experts", "N: the number of copies of each chosen FFN.", 2, 1024, 1),
    "top_k": Number(
        "Top-k",
        "The router sends each token to this many experts and weighs their outputs.",
        1,
        1024,
        1,
    ),
    "window": Number(
        "Window, tokens",
        "The text is cut into windows of this many tokens of context.",
        2,
        MOST,
        64,
    ),
    "steps": Number("Steps", "How many times the weights are updated.", 1, 10 * MOST, 50),
    "batch": Number(
        "Batch, windows", "Windows in one forward pass; activations grow with it.", 1, 4096, 1
    ),
    "accumulation": Number(
        "Accumulation", "Forward passes in a step: a larger batch without its memory.", 1, 4096, 1
    ),
    "learning_rate": Number("Learning rate", "Peak learning rate of AdamW.", 0.0, 1.0, 1e-5),
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
        "Learning rate of the shared weight, if it differs.",
        0.0,
        1.0,
        1e-5,
        "the same",
    ),
    "router_rate": Number(
        "Routers' rate",
        "Learning rate of the routers, if it differs.",
        0.0,
        1.0,
        1e-5,
        "the same",
    ),
    "weight_decay": Number("Weight decay", "AdamW's pull towards 0.", 0.0, 10.0, 0.01),
    "clip": Number(
        "Gradient clip",
        "Limit of the gradient's norm; 0 for no limit.",
        0.0,
        1000.0,
        0.1,
    ),
    "save_every": Number(
        "Save every, steps",
        "Steps between training checkpoints, from which a stopped run resumes.",
        1,
        MOST,
        50,
    ),
    "keep": Number("Saves kept", "Older training checkpoints are deleted.", 1, 1000, 1),
    "measure_every": Number(
        "Measure every",
        "Steps between two measurements on the held-out text; 0: only at the end.",
        0,
        MOST,
        50,
    ),
    "heldout_tokens": Number(
        "Held-out tokens",
        "At most this much of the held-out text is measured.",
        2,
        100 * MOST,
        1024,
    ),
    "seed": Number(
        "Seed", "Of positions, first values and the order of the text.", 0, 2**31 - 1, 1
    ),
}
"""By the name of the choice."""
