"""What lies in a file instead of what its name says: pointers, web pages, other formats."""

from __future__ import annotations

POINTER = b"version https://git-lfs"
START_BYTES = 256
"""Enough of a file's beginning to know a stand-in."""

_AGAIN = "download it again"
_FORMATS = {
    b"GGUF": "a GGUF file of llama.cpp under another name; give the safetensors original",
    b"PK\x03\x04": "a zip archive under another name, as PyTorch's pickled weights are; convert "
    "them with transformers' save_pretrained() to safetensors first",
    b"\x80\x02": "a pickle under another name; convert it with transformers' save_pretrained() to "
    "safetensors first",
    b"\x1f\x8b": "a gzip archive under another name; unpack it first",
    b"\x89HDF": "an HDF5 file under another name; give the safetensors original",
}


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins so is what git leaves in place of a large file."""
    return start.startswith(POINTER)


def stand_in(start: bytes) -> str | None:
    """What a file with this beginning is, and what to do: "is …"; None if it is not known.

    start: the first START_BYTES bytes, or all. For files that cannot be read as what they should
    be: a text or zeros are nothing odd in others.
    """
    if is_pointer(start):
        return (
            "is a git-lfs pointer, not the file itself; run `git lfs pull` in its repository, or "
            + _AGAIN
        )
    for magic, what in _FORMATS.items():
        if start.startswith(magic):
            return f"is {what}"
    if len(start) > 8 and not any(start):
        return f"begins with zeros: its download broke off; {_AGAIN}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return (
            f"is a web page, saved in place of the file; {_AGAIN}, signed in if its server asks "
            "for that"
        )
    line = start.split(b"\n")[0].strip()
    if len(line) >= 8 and all(0x20 <= byte < 0x7F for byte in line):
        quoted = line[:60].decode("ascii")
        return f"is a text ({quoted!r}), perhaps a server's answer; {_AGAIN}"
    return None
