"""All checks of a codec, and those of what its class says of itself."""

from __future__ import annotations

from collections.abc import Callable

from ders_core.codecs.codec import CODECS, Codec, make_codec
from ders_core.codecs.testing.packing import (
    check_damage,
    check_pieces,
    check_shapes,
    check_together,
)
from ders_core.codecs.testing.predictions import check_expected
from ders_core.codecs.testing.trying import check_tried
from ders_core.codecs.testing.tuning import check_tuning


def examples_of(codec_class: type[Codec]) -> list[Codec]:
    """The codecs that a class names as its examples."""
    return [make_codec({"codec": codec_class.name, **fields}) for fields in codec_class.examples]


def check_class(codec_class: type[Codec]) -> None:
    """It is registered, describes itself, and each of its choices can be chosen."""
    assert CODECS.find(codec_class.name) is codec_class
    assert codec_class.summary.endswith("."), "the summary is a sentence"
    assert codec_class.source, "a codec names its source"
    assert codec_class.examples, "a codec has examples"
    others = [choice for codec in CODECS.values() for choice in codec.choices]
    for choice in codec_class.choices:
        assert not choice.begin.keys() & choice.fields.keys()
        labels = [other.label for other in others]
        assert labels.count(choice.label) == 1, f"another codec is called {choice.label!r}"
        fields = {"codec": codec_class.name, **choice.fields}
        strength = choice.strength
        if strength is None:
            assert make_codec(fields).choice == choice
            assert make_codec({**choice.begin, **fields}).choice == choice
            continue
        assert strength.least <= strength.start <= strength.most
        for value in (strength.least, strength.start, strength.most):
            for begin in ({}, choice.begin):
                codec = make_codec({**begin, **fields, strength.field: strength.number(value)})
                assert codec.choice == choice
                assert strength.field in codec.fields_beside_strength()


def check_parameters(codec: Codec) -> None:
    """They travel in recipes and manifests as plain values, and cannot be changed."""
    assert make_codec(codec.dump()) == codec
    assert hash(codec) == hash(make_codec(codec.dump()))
    assert codec.label
    assert "\n" not in codec.label


CHECKS: tuple[Callable[[Codec], None], ...] = (
    check_parameters,
    check_shapes,
    check_pieces,
    check_together,
    check_damage,
    check_tried,
    check_tuning,
    check_expected,
)


def check_codec(codec: Codec) -> None:
    """Every check of one codec."""
    for check in CHECKS:
        check(codec)
