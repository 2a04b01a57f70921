"""The `ders` command."""
