"""Text for a terminal: whatever a name contains, it cannot move the cursor or end a line."""

from __future__ import annotations

import io
import sys

from rrmove.units import format_size

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNDECODED = range(0xDC80, 0xDD00)  # how Python carries bytes that are no UTF-8 (PEP 383)


def printable(text: str) -> str:
    """Escape what a terminal would obey or misread: control, bidi and undecodable characters."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if code in _UNDECODED:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def printable_lines(text: str, indent: str = "") -> str:
    """Escape every line of a text of several; all but the first are indented."""
    return f"\n{indent}".join(printable(line.rstrip()) for line in text.splitlines())


def accept_any_name() -> None:
    """Let stdout take names that its encoding does not know, escaped, rather than fail on them."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Write a line to stderr; that its reader is gone is no reason to end what is being done."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def plural(count: int, thing: str) -> str:
    """Count things: `1 connection`, `2 connections`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def joined(words: tuple[str, ...] | list[str], link: str = ", ") -> str:
    """Join words that came from elsewhere, made printable."""
    return link.join(map(printable, words))


def middle_out(text: str, width: int) -> str:
    """Shorten a name to `width` characters: what tells names apart is at their ends."""
    if len(text) <= width or width < 5:  # below that nothing readable is left
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def amount(durable: int, size: int) -> str:
    """Give `412 of 955 MB`, with the unit said once where both have the same; a size of 0 is not known."""
    if durable and not size:
        return format_size(durable)
    some, all_of_it = format_size(durable), format_size(size)
    number, _, unit = some.partition(" ")
    return f"{number if all_of_it.endswith(f' {unit}') else some} of {all_of_it}"
