"""The demo: a small upcycled MoE, really trained, on text that every Python brings along."""

from ders_core.demo.build import DemoResult, DemoScale, build_demo
from ders_core.demo.models import Shape

__all__ = ["DemoResult", "DemoScale", "Shape", "build_demo"]
