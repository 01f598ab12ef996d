"""The interface is what it is described as: OpenAPI, the document, and the lines for curl in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.served import GRAIN, Served, digests

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
METHODS = {"get", "head", "put", "post", "delete"}


def described() -> dict[str, Any]:
    argv = [sys.executable, "-m", "rrmove", "serve", "--openapi"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_what_is_described_is_in_the_document_and_the_other_way_round() -> None:
    told = set()
    for line in DOCUMENT.split("## For all requests")[0].splitlines():
        if found := re.fullmatch(r"    ((?:GET|HEAD|PUT|POST|DELETE)(?: HEAD)?)\s+(/\S+)\s\s+.*", line):
            told |= {(method, re.sub(r"[A-Z][A-Z-]+", "{}", found[2])) for method in found[1].split()}
    offered = {
        (method.upper(), re.sub(r"\{[a-z]+\}", "{}", path))
        for path, operations in described()["paths"].items()
        for method in METHODS & set(operations)
    } - {("GET", "/v1/files/{}/")}  # the root's own directory: the same line of the document
    assert told == offered


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("filled"), options=("--patience", "5")) as served:
        (served.data / "file").write_bytes(b"content")
        (served.data / "folder").mkdir()
        yield served


def test_schemathesis_finds_nothing(filled: Served) -> None:
    assert fuzz(filled, described(), 8) > 100


def test_schemathesis_finds_nothing_where_there_is_something(filled: Served) -> None:
    assert fuzz(filled, narrowed(), 8, "negative_data_rejection") > 100
    assert (filled.data / "file").read_bytes() == b"content"
    assert [path.read_bytes() for path in filled.data.glob("up*")] == [b"hello"] * len(list(filled.data.glob("up*")))


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["wide", "narrow"])
def test_schemathesis_finds_nothing_at_length(filled: Served, how: str) -> None:
    if how == "wide":
        fuzz(filled, described(), 300)
    else:
        fuzz(filled, narrowed(), 300, "negative_data_rejection")


def narrowed() -> dict[str, Any]:
    """Describe what is there in this root, so that most requests lead to something; the server takes more."""
    api = described()
    schema = {"root": {"type": "string", "enum": ["data"]}, "directory": {"type": "string", "enum": ["folder"]}}
    schema["path"] = {"type": "string", "enum": ["file", "folder", "none"]}
    for operations in api["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = schema.get(parameter["name"], parameter["schema"])
    upload = api["components"]["schemas"]["NewUpload"]["properties"]
    upload["root"], upload["path"] = schema["root"], {"type": "string", "pattern": "^up[a-z]{1,3}$"}
    upload["size"] = {"type": "integer", "enum": [5]}
    upload["digests"] = {"type": "string", "enum": [digests(b"hello")]}
    return api


def fuzz(served: Served, api: dict[str, Any], examples: int, *without: str) -> int:
    """Let schemathesis ask for whatever the description allows, and for much that it does not; give the count."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert program, "the extra `dev` brings it"
    spec = served.where / "openapi.json"
    spec.write_text(json.dumps(api))
    argv = [program, "run", str(spec), "--url", served.url, "-H", f"Authorization: Bearer {served.token}", "--no-color"]
    argv += ["--checks", "all", "--max-examples", str(examples), "--seed", "1", "--generation-database", "none"]
    # A schema cannot say that there is one digest for each chunk, nor which ETags match.
    argv += ["--exclude-checks", ",".join(["positive_data_acceptance", *without])]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=served.where, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert served.ask("GET", "/healthz").json["ok"]
    found = re.search(r"(\d+) generated", done.stdout)
    return int(found[1]) if found else 0


def block(number: int) -> str:
    return str(re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)[number])


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])
def test_the_lines_for_curl(tmp_path: Path, plain: bool) -> None:  # noqa: FBT001 - a parameter
    """They upload a file, over a server that is killed in between, and fetch it again."""
    data = os.urandom(10 * GRAIN + 17)
    work = tmp_path / "work"
    work.mkdir()
    (work / "model.pth").write_bytes(data)
    upload = block(0)
    with Served(tmp_path, plain=plain) as served:

        def run(script: str) -> subprocess.CompletedProcess[str]:
            (work / "auth").write_text(f"Authorization: Bearer {served.token}\n")
            setting = {"https://gpu-3:8780": served.url, "sha256//the-server-printed-it=": str(served.told["pin"])}
            for word, value in setting.items():
                script = script.replace(word, value)
            return subprocess.run(
                ["sh", "-c", script], cwd=work, capture_output=True, text=True, timeout=60, check=False
            )

        if plain:
            upload = upload.replace('--pinnedpubkey "$pin"', "")
        begun = served.begin(data, "models/model.pth").json
        served.put(begun, data, 0, 5 * GRAIN)
        served.kill()
    with Served(tmp_path, plain=plain) as served:
        cut = run(upload.replace("-T -", "--limit-rate 1 --max-time 0.5 -T -"))
        assert cut.returncode != 0, "it was to be cut off, and fail"
        assert not (served.data / "models" / "model.pth").exists()
        end = time.monotonic() + 20
        while not (puts := [line for line in served.log() if line.get("method") == "PUT" and line["status"] != 200]):
            assert time.monotonic() < end
            time.sleep(0.05)  # the server has to notice
        begun_at = f"bytes {5 * GRAIN}-{5 * GRAIN + (8 << 20) - 1}/{len(data)}"
        assert [line["range"] for line in puts] == [begun_at], "it did not go on where the first server was"
        done = run(upload)
        assert done.returncode == 0, done.stderr
        assert '"state": "committed"' in done.stdout
        assert (served.data / "models" / "model.pth").read_bytes() == data
        again = run(upload)
        assert (again.returncode, '"state": "committed"' in again.stdout) == (0, True)
        (work / "model.pth").write_bytes(data[:1_000_000])
        back = run(upload.split("\n\n", maxsplit=1)[0] + "\n" + block(1))
        assert back.returncode == 0, back.stderr
        assert (work / "model.pth").read_bytes() == data
        assert any(line.get("range") == "bytes=1000000-" and line["status"] == 206 for line in served.log())
