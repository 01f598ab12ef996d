"""How a server begins and ends, what it keeps to itself, and what it says when something is wrong."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.serving.served import Served

ROOT = Path(__file__).resolve().parents[2]


def serve(where: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected not to run."""
    argv = [sys.executable, "-m", "rrmove", "serve", *map(str, words)]
    environ = {**os.environ, "XDG_STATE_HOME": str(where / "state")}
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])
def test_secrets_are_kept(tmp_path: Path, plain: bool) -> None:  # noqa: FBT001 - a parameter
    with Served(tmp_path, plain=plain) as served:
        for name in ("serve.token", f"serve-{served.port}.json", *(() if plain else ("serve.pem",))):
            assert (served.state / name).stat().st_mode & 0o777 == 0o600
        assert (served.state / "serve.pem").exists() is not plain
        told = json.loads((served.state / f"serve-{served.port}.json").read_text())
        assert told == served.told
        assert (told["pid"], told["scheme"]) == (served.process.pid, "http" if plain else "https")
        assert Path(told["token_file"]) == served.state / "serve.token"
        for wrong in ("", "x", served.token[:-1], f"{served.token}x", served.token.swapcase(), "\xe4"):
            for header in (f"Bearer {wrong}", wrong, f"Basic {wrong}"):
                assert served.ask("GET", "/v1/roots", headers={"Authorization": header}).status == 401
        assert served.ask("GET", "/v1/roots", headers={"Authorization": served.token}).status == 401
        assert served.ask("GET", "/v1/roots", headers={"Authorization": f"Basic {served.token}"}).status == 401
        assert served.ask("GET", "/v1/roots", headers={"Authorization": f"bearer  {served.token}"}).status == 200
        for path in ("/", "/healthz", "/metrics", "/v1/roots", "/v1/files/data/", "/v1/uploads", "/nothing"):
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\n"
            assert b" 401 " in served.raw(f"{head}\r\n".encode())
            twice = f"Authorization: Bearer {served.token}\r\n" * 2
            assert b" 401 " in served.raw(f"{head}{twice}\r\n".encode())
        served.ask("GET", f"/v1/roots?token={served.token}")
        assert served.token not in Path(f"/proc/{served.process.pid}/cmdline").read_text()
        assert served.token not in Path(f"/proc/{served.process.pid}/environ").read_text()
        assert served.stop() == 0
        assert served.token not in served.log_path.read_text()
        assert served.log()[-1]["event"] == "stopped"
    assert not list(served.state.glob("*.json"))


def test_the_certificate_is_pinned(tmp_path: Path) -> None:
    for _ in range(2):  # made at the first start, the same at the second
        with Served(tmp_path, plain=False) as served, served.socket() as sock:
            assert isinstance(sock, ssl.SSLSocket)
            der = sock.getpeercert(binary_form=True)
            assert der is not None
            assert hashlib.sha256(der).hexdigest() == served.told["fingerprint"]
            if shutil.which("curl"):
                for pin, code in ((served.told["pin"], 0), (f"sha256//{'A' * 43}=", 90)):
                    argv = ["curl", "-s", "-k", "--pinnedpubkey", pin, f"{served.url}/healthz"]
                    assert subprocess.run(argv, capture_output=True, check=False).returncode == code
            fingerprint = served.told["fingerprint"]
    assert served.told["fingerprint"] == fingerprint
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with Served(tmp_path, plain=False) as served:
        assert b"HTTP" not in _plainly(served.port)


def _plainly(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        try:
            return sock.recv(4096)
        except ConnectionError:
            return b""


def test_what_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    state = tmp_path / "state" / "rrmove"
    root = f"data={tmp_path / 'data'}"

    def refused(code: int, words: str, *argv: object) -> None:
        done = serve(tmp_path, *argv)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert re.search(words, done.stderr), done.stderr
        assert len(done.stderr.splitlines()) >= 2, "what to do next is missing"
        assert "Traceback" not in done.stderr

    refused(2, "no root was named")
    refused(2, "is no root", "--root", "data")
    refused(2, "is no root", "--root", "../x=/tmp")
    refused(2, "No such file", "--root", f"data={tmp_path}/none")
    refused(2, "Not a directory", "--root", "data=/etc/passwd")
    refused(2, "same name", "--root", root, "--root", root)
    refused(2, "is no port", "--root", root, "--port", "65536")
    refused(2, "is no address", "--root", root, "--listen", "nowhere.invalid")
    refused(2, "plain HTTP is not offered on 203.0.113.9", "--root", root, "--plain", "--listen", "203.0.113.9")
    refused(2, "plain HTTP is not offered on 0.0.0.0", "--root", root, "--plain", "--listen", "0.0.0.0")
    refused(2, "plain HTTP is not offered on ::", "--root", root, "--plain", "--listen", "::")
    refused(2, "plain HTTP is not offered on 192.168.1.1", "--root", root, "--plain", "--listen", "192.168.1.1")
    refused(2, "no such address", "--root", root, "--plain", "--listen", "100.64.0.77")
    refused(2, "lies in the root", "--root", f"all={tmp_path}")
    refused(2, "lies in the root", "--root", root, "--token-file", tmp_path / "data" / "token")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(1, f"127.0.0.1 port {port}: Address already in use", "--root", root, "--plain", "--port", port)
    token = state / "serve.token"
    token.chmod(0o640)
    refused(2, "can be read or changed by others", "--root", root, "--plain")
    token.chmod(0o600)
    token.write_text("short\n")
    refused(2, "holds no token", "--root", root, "--plain")
    token.unlink()
    (state / "serve.pem").write_text("nothing")
    (state / "serve.pem").chmod(0o600)
    refused(2, "cannot be used", "--root", root, "--port", "0")
    assert not list(state.glob("serve-*.json"))


def test_plain_anywhere_is_a_word_of_its_own(tmp_path: Path) -> None:
    with Served(tmp_path, options=("--plain-anywhere", "--listen", "0.0.0.0")) as served:
        assert served.told["addresses"] == ["0.0.0.0"]
        assert served.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])
def test_a_graceful_stop_lets_requests_end(tmp_path: Path, plain: bool) -> None:  # noqa: FBT001 - a parameter
    data = os.urandom(3_000_000)
    with Served(tmp_path, plain=plain) as served:
        idle = served.connection()
        idle.request("GET", "/healthz", headers=served.authorization)
        idle.getresponse().read()
        begun = served.begin(data, "ending").json
        sock = served.half_put(begun, data, 0, len(data), 1_000_000)
        time.sleep(0.3)
        served.process.terminate()
        while list(served.state.glob("*.json")):
            time.sleep(0.01)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", served.port), timeout=5).close()
        sock.sendall(data[1_000_000:])
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 200
        response.read()
        sock.close()
        assert served.process.wait(15) == 0
    with Served(tmp_path, plain=plain) as served:
        assert served.begin(data, "ending").json["missing"] == []


def test_a_stop_does_not_wait_for_what_is_read_back(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        with (served.data / "huge").open("wb") as file:
            file.truncate(1 << 37)  # a minute and more to hash
        asking = threading.Thread(target=lambda: served.ask("GET", "/v1/files/data/?digest=1"))
        asking.start()
        time.sleep(0.3)
        begun = time.monotonic()
        assert served.stop(40) == 0
        assert time.monotonic() - begun < 20
        asking.join()


def test_a_stale_state_file_is_replaced_and_a_foreign_one_left(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        path = served.state / f"serve-{served.port}.json"
        served.kill()
        assert path.exists()
    with Served(tmp_path, port=served.port) as served:
        assert json.loads(path.read_text())["pid"] == served.process.pid
        path.write_text('{"pid": 1}')
        assert served.stop() == 0
        assert path.exists()


def test_the_log_is_json_and_names_what_matters(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        (served.data / "f").write_bytes(b"12345")
        served.ask("GET", "/v1/files/data/f", headers={"Range": "bytes=1-2"})
        served.ask("GET", "/v1/files/data/none")
        served.stop()
        first, second = (line for line in served.log() if line["event"] == "request")
    assert (first["method"], first["path"], first["status"], first["range"]) == (
        "GET",
        "/v1/files/data/f",
        206,
        "bytes=1-2",
    )
    assert first["peer"].startswith("127.0.0.1:")
    assert (second["status"], "error" in second) == (404, True)
    assert [line["event"] for line in served.log()] == ["serving", "request", "request", "stopping", "stopped"]


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    served = Served(tmp_path)
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    process = subprocess.Popen(served.argv(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        served.port = json.loads(process.stdout.readline())["port"]
        served.token = (served.state / "serve.token").read_text().strip()
        connection = served.connection()
        for _ in range(1500):  # some 300 kB of log: a pipe has 64
            connection.request("GET", "/healthz", headers=served.authorization)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
        connection.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit(tmp_path: Path) -> None:
    unit = ROOT / "examples" / "rrmove-serve.service"
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    broken = tmp_path / "broken.service"
    broken.write_text(unit.read_text().replace("Restart=", "Restarts=").replace("ExecStart=", "ExecStart=relative"))
    done = subprocess.run(["systemd-analyze", "verify", broken], capture_output=True, text=True, check=False)
    assert done.stderr, "systemd-analyze finds nothing, whatever is wrong"
    (line,) = re.findall(r"^ExecStart=(?:\S+/env )?rrmove (.*)$", unit.read_text(), re.MULTILINE)
    from rrmove.cli.arguments import parse

    parse(line.split())
