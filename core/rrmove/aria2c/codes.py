"""What aria2c's error codes mean, as our errors. Pure."""

from __future__ import annotations

from rrmove.errors import Fatal, IntegrityError, Transient, TransportError, Unusable

# aria2's exit and error codes (aria2c(1), EXIT STATUS): what the reader does next, and in which words.
_MEANING: dict[int, tuple[type[TransportError], str]] = {
    1: (Transient, "an error that it does not name, as a refused connection"),
    2: (Transient, "the server does not answer"),
    3: (Unusable, "the server has no such file"),
    4: (Unusable, "the server has no such file, it said several times"),
    5: (Transient, "it was too slow"),
    6: (Transient, "the network failed"),
    7: (Transient, "it was ended before it was done"),
    8: (Unusable, "the server gives no ranges"),
    9: (Fatal, "the disk is full"),
    10: (Unusable, "its control file does not fit"),
    13: (Unusable, "the file was there"),
    15: (Unusable, "the part file could not be opened"),
    16: (Unusable, "the part file could not be made"),
    17: (Unusable, "the part file could not be read or written"),
    19: (Unusable, "a name could not be resolved"),
    22: (Transient, "the server's answer was bad"),
    23: (Unusable, "the server redirects too often"),
    24: (Unusable, "the server wants other credentials"),
    28: (Unusable, "it refuses an option"),
    29: (Transient, "the server is overloaded"),
}
_CHECKSUM = 32  # with an empty message


def explained(code: int, message: str, *, node: str, tried: str | None = None) -> TransportError | IntegrityError:
    """Give the error that a code stands for."""
    if code == _CHECKSUM:
        return IntegrityError("what aria2c fetched has another SHA-256 than the file", node=node, tried=tried)
    kind, meaning = _MEANING.get(code, (Transient, "an error of its own"))
    said = f": {' '.join(message.split())[:200]}" if message.strip() else ""
    return kind(f"aria2c failed with code {code}, {meaning}{said}", node=node, tried=tried)


__all__ = ["explained"]
