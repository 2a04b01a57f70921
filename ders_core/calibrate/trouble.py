"""What a model may do with a weight so that what its errors cost cannot be told."""

from __future__ import annotations

from enum import Enum


class Trouble(Enum):
    """The values are told of a weight: the model ..."""

    AT_ONCE = "multiplies every token with it and other weights at once"
    ANOTHER_FORM = "multiplies with it in another form than it has"
    APART = "computes with it in other ways than by products, so inputs and gradients do not match"
    NEVER = "does not multiply with it on text"
    NO_GRADIENT = "computes what it gives without gradients"
    NO_LOOKUP = "looks its rows up in a way that cannot be observed"
    INFINITE = "computes gradients after it that are not finite"
    NO_COST = "gives it gradients of zero alone"
