"""One file a kind of base; the registry `ders_core.decompose.base.BASES` finds them by itself."""
