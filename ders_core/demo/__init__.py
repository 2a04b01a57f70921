"""The demo: a small upcycled MoE, trained on the text of Python's standard library."""

from ders_core.demo.build import DemoResult, DemoScale, build_demo
from ders_core.demo.models import Shape

__all__ = ["DemoResult", "DemoScale", "Shape", "build_demo"]
