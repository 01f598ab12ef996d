"""`rrmove plugin new`: a distribution with a transport that works, to be changed into another."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rrmove.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rrmove.cli.arguments import NewPluginCommand

TEMPLATE = Path(__file__).parent.parent / "template"  # a distribution as it is, for a transport called `pigeon`
ELSEWHERE = {"ci.yml": ".github/workflows/test.yml"}  # what has a place that the template cannot have
NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


def run(command: NewPluginCommand) -> int:
    """Write the files and say what to do with them. Raises UsageError where it would overwrite anything."""
    folder = Path(command.directory or f"rrmove-{command.name}")
    files = dict(written(checked(command.name)))
    if there := [name for name in files if (folder / name).exists()]:
        raise UsageError(f"{str(folder / there[0])!r} is there already", remedy="Name another with --directory")
    try:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}") from error
    quoted = shlex.quote(str(folder))
    sys.stdout.write("".join(f"{folder / name}\n" for name in files))
    sys.stderr.write(
        "rrmove: a transport that works, and its tests. Next:\n"
        f"    cd {quoted} && pip install -e '.[dev]' && pytest\n"
        f"    rrmove plugins {command.name}\n"
    )
    return 0


def checked(name: str) -> str:
    """Give the name back, where a transport can be called so. Raises UsageError."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a transport", remedy="Use small letters, digits and single dashes")
    from rrmove.discovery import GROUP, registered

    taken = {each.name: each.distribution for each in registered(GROUP)}
    if name in taken:
        raise UsageError(f"{name!r} is a transport of {taken[name]} already", remedy="Choose another name")
    return name


def written(name: str) -> Iterator[tuple[str, str]]:
    """Give the files of a new distribution: their paths in it, and their text."""
    word = name.replace("-", "_")
    names = {
        "rrmove_pigeon": f"rrmove_{word}",
        "test_pigeon": f"test_{word}",
        "Pigeon": "".join(part.capitalize() for part in re.split("[-_]", name)),
        "pigeon": name,
    }

    def renamed(text: str) -> str:
        return re.sub("|".join(names), lambda found: names[found[0]], text)

    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            place = path.relative_to(TEMPLATE).as_posix()
            yield renamed(ELSEWHERE.get(place, place)), renamed(path.read_text(encoding="utf-8"))
