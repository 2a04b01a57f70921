"""Checks that every codec passes. Whoever writes a codec runs them on examples of it:

    @pytest.mark.parametrize("codec", examples_of(MyCodec), ids=lambda codec: codec.label)
    def test_my_codec(codec):
        check_codec(codec)

Each check raises AssertionError. They need no test runner and leave nothing behind.
"""

from ders_core.codecs.testing.checks import CHECKS, check_class, check_codec, examples_of

__all__ = ["CHECKS", "check_class", "check_codec", "examples_of"]
