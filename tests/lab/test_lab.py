"""The lab proves itself: every fault that a profile names is there, of the size it says."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import PROVIDERS, Lab, LabError, Profile
from tests.lab.cable import packets, without
from tests.lab.cluster import sweep
from tests.lab.fixtures import MakeLab, lab, needs_lab
from tests.lab.processes import end, launch, recorded, wait_until
from tests.lab.profiles import bits_per_second
from tests.lab.reaper import caller

__all__ = ["lab"]

pytestmark = pytest.mark.lab

MB = 1_000_000

NODES = (
    Profile("plain"),
    Profile("distant", rtt_ms=60, open_ports=(9000,)),
    Profile("cut", reset_bytes=3 * MB),
    Profile("brief", reset_seconds=(2, 2.5)),
    Profile("silent", hang_seconds=(3, 3.2)),
    Profile("bare", without=("python3", "rsync"), data_mb=8, routes_back=False),
    Profile("narrow", rate="40mbit", rtt_ms=20),
    Profile("shaped", rate="40mbit"),
    Profile("lossy", rtt_ms=10, loss=0.02),
    Profile("inner", jump="plain"),
    Profile("deny", closed="reject"),
    Profile("strict", connects_per_minute=3),
    Profile("dark", down=True),
)

# Prints the seconds of each of five connects, or why there was none
CONNECT = """
import socket, sys, time
for _ in range(5):
    began = time.monotonic()
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
    except OSError as error:
        print(type(error).__name__)
        break
    print(time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def here(lab: MakeLab) -> Lab:
    """Build one lab for this file."""
    return lab(*NODES)


def connect(here: Lab, address: str, port: int = 22, patience: float = 1) -> list[str]:
    """Connect from the client five times, or until it fails."""
    argv = [sys.executable, "-c", CONNECT, address, str(port), str(patience)]
    return here.run(argv).stdout.split()


def send(here: Lab, node: str, size: int, *options: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """Send bytes to a node's /data/sent by plain ssh."""
    feed = f"head -c {size} /dev/zero | ssh {' '.join(options)} {node} 'cat > /data/sent'"
    return here.run(["bash", "-o", "pipefail", "-c", feed], timeout=timeout, check=False)


def sent(here: Lab, node: str) -> int:
    """Return how much of it is there."""
    path = here.path(node, "/data/sent")
    return path.stat().st_size if path.exists() else 0


# The link


def test_round_trip(here: Lab) -> None:
    """A connect takes a round trip, not much less and not several."""
    times = [float(word) for word in connect(here, here.address("distant"))]
    assert 0.055 < min(times) <= statistics.median(times) < 0.2
    assert min(map(float, connect(here, here.address("plain")))) < 0.03


@pytest.mark.parametrize("node", ["narrow", "shaped"])
def test_rate(here: Lab, node: str) -> None:
    """The line carries what the profile says: over a cable, and over a veth pair with a bucket."""
    copying = here.popen(
        ["bash", "-c", f"head -c 20000000 /dev/zero | ssh {node} 'cat > /data/sent'"], stdout=subprocess.DEVNULL
    )
    wait_until(lambda: sent(here, node) >= 2 * MB, 20, "the copy to be under way")
    began, had = time.monotonic(), sent(here, node)
    while sent(here, node) < 12 * MB and copying.poll() is None:
        time.sleep(0.01)
    rate = (sent(here, node) - had) * 8 / (time.monotonic() - began)
    assert copying.wait(20) == 0
    assert 0.8 * 40e6 < rate < 1.2 * 40e6


def test_loss(here: Lab) -> None:
    """Packets are lost, TCP sends them again, and what arrives is whole."""
    data = os.urandom(4 * MB)
    source = here.directory / "random"
    source.write_bytes(data)
    here.run(["sh", "-c", f"ssh lossy 'cat > /data/sent' < {source}"])
    assert here.sha256("lossy", "/data/sent") == hashlib.sha256(data).hexdigest()
    again = here.run(["nstat", "-asz", "TcpRetransSegs"]).stdout.split()
    assert float(again[again.index("TcpRetransSegs") + 1]) > 10


def test_bytes_are_counted(here: Lab) -> None:
    """A copy puts its bytes on the wire, and little more."""
    before = here.bytes_to("plain")
    assert send(here, "plain", 5 * MB).returncode == 0
    assert 5 * MB < here.bytes_to("plain") - before < 6 * MB


# Cuts


def test_reset_at_a_volume(here: Lab) -> None:
    """The connection dies at about the volume, again and again; smaller copies get through."""
    before = here.resets("cut")
    done = send(here, "cut", 10 * MB)
    assert done.returncode
    assert 0.5 * MB < sent(here, "cut") <= 3.1 * MB  # what is in SSH's window, 2 MiB of it, dies with the connection
    assert here.resets("cut") == before + 1
    pulled = here.run(["ssh", "cut", "head -c 10000000 /dev/zero"], check=False)
    assert pulled.returncode
    assert here.resets("cut") == before + 2
    assert send(here, "cut", 2 * MB).returncode == 0
    assert here.resets("cut") == before + 2


def test_reset_at_an_age(here: Lab) -> None:
    """An idle connection is reset too."""
    before = here.resets("brief")
    began = time.monotonic()
    done = here.run(["ssh", "brief", "sleep 20"], check=False)
    assert done.returncode
    assert 1.5 < time.monotonic() - began < 10
    assert here.resets("brief") == before + 1


def test_silence(here: Lab) -> None:
    """A connection that falls silent gives no sign; only a timeout of the client's own tells."""
    before = here.resets("silent")
    with pytest.raises(subprocess.TimeoutExpired):
        here.run(["ssh", "silent", "sleep 4; echo heard"], timeout=7)
    assert here.resets("silent") == before + 1
    assert here.run(["ssh", "silent", "echo heard"]).stdout == "heard\n"


# The node


def test_hidden_tools(here: Lab) -> None:
    """What a profile lacks is missing on the node alone, and comes and goes as tests wish."""
    ask = ["ssh", "bare", "command -v python3 python3.11 rsync cat"]
    assert here.run(ask, check=False).stdout.split() == ["/usr/bin/cat"]
    assert not list(here.path("bare", "/usr/bin").glob("python3*"))
    assert here.run(["sh", "-c", "command -v rsync python3"]).stdout
    here.restore("bare", "python3")
    assert here.on("bare", ["python3", "-c", "print(1)"]).stdout == "1\n"
    here.hide("bare", "python3")
    assert "python3" not in here.run(ask, check=False).stdout


def test_full_disk(here: Lab) -> None:
    """A small /data fills up, and is looked at from outside."""
    done = here.run(["ssh", "bare", "head -c 20000000 /dev/zero > /data/big"], check=False)
    assert "No space left" in done.stderr
    assert here.path("bare", "/data/big").stat().st_size == 8 << 20
    here.wipe("bare")
    assert not here.path("bare", "/data/big").exists()
    assert here.sha256("bare", "/data/big") is None


def test_own_files(here: Lab) -> None:
    """A node's /root, /data and /tmp are its own; wipe empties them and ends what runs."""
    here.run(["ssh", "plain", "echo x > x; echo x > /data/x; echo x > /tmp/.x; sleep 50 >/dev/null 2>&1 &"])
    for path in ("x", "/data/x", "/tmp/.x"):
        assert here.sha256("plain", path) == hashlib.sha256(b"x\n").hexdigest()
        assert here.sha256("deny", path) is None
    wait_until(lambda: "sleep 50" in here.processes("plain"), 10, "what the session left to run")
    here.wipe("plain")
    assert here.sha256("plain", "x") is None
    assert list(here.path("plain", "/data").iterdir()) == []
    assert here.processes("plain") == []


def test_jump(here: Lab) -> None:
    """A node behind another is reached through it, and not directly."""
    before = here.connects("plain")
    assert here.run(["ssh", "inner", "echo", "$SSH_CONNECTION"]).stdout.split()[0] == here.address("plain")
    assert here.connects("plain") == before + 1
    assert connect(here, here.address("inner")) == ["TimeoutError"]


def test_closed_ports(here: Lab) -> None:
    """Ports drop or refuse, and open when told."""
    assert connect(here, here.address("plain"), 8888) == ["TimeoutError"]
    assert connect(here, here.address("deny"), 8888) == ["ConnectionRefusedError"]
    assert connect(here, here.address("distant"), 9000) == ["ConnectionRefusedError"]  # open, but nobody listens
    here.filter_ports("plain", 8888, ssh=False)
    assert connect(here, here.address("plain"), 8888) == ["ConnectionRefusedError"]
    assert connect(here, here.address("plain"), 22) == ["TimeoutError"]
    here.filter_ports("plain")
    assert len(connect(here, here.address("plain"))) == 5
    assert connect(here, here.address("plain"), 8888) == ["TimeoutError"]


def test_route_back(here: Lab) -> None:
    """A node reaches the client, unless its profile says otherwise."""
    ask = ["bash", "-c", f"exec 3<>/dev/tcp/{here.client_address}/9"]
    assert "refused" in here.on("plain", ask, check=False).stderr
    with pytest.raises(subprocess.TimeoutExpired):
        here.on("bare", ask, timeout=1)
    assert here.run(["ssh", "bare", "echo in"]).stdout == "in\n"


def test_connects_are_counted_and_limited(here: Lab) -> None:
    """A source that connects too often is shut out."""
    before = here.connects("strict")
    answers = connect(here, here.address("strict"))
    assert len(answers) == 4
    assert answers[-1] == "ConnectionRefusedError"
    assert here.connects("strict") == before + 4


def test_sshd_comes_and_goes(here: Lab) -> None:
    """A node without sshd refuses; its sessions end with it."""
    assert connect(here, here.address("dark")) == ["ConnectionRefusedError"]
    session = here.popen(["ssh", "deny", "sleep 50"], stderr=subprocess.PIPE)
    wait_until(lambda: "sleep 50" in here.processes("deny"), 10, "the session to run")
    here.stop_sshd("deny")
    session.communicate(timeout=10)
    assert session.returncode
    assert connect(here, here.address("deny")) == ["ConnectionRefusedError"]
    here.start_sshd("deny")
    assert here.run(["ssh", "deny", "echo back"]).stdout == "back\n"
    assert "publickey" in here.sshd_log("deny")


def test_changed_host_key(here: Lab) -> None:
    """A node that is not who it was is refused by ssh."""
    here.change_host_key("dark")
    done = here.run(["ssh", "-o", "BatchMode=yes", "dark", "true"], check=False)
    assert "Host key verification failed" in done.stderr
    here.stop_sshd("dark")


# The lab itself


@needs_lab
def test_two_labs_and_nothing_left() -> None:
    """Two labs do not meet, and of one that is down nothing is left."""
    with Lab([Profile("one", rtt_ms=2, reset_seconds=(9, 9))]) as first:
        with Lab([Profile("one")]) as second:
            first.run(["ssh", "one", "echo first > /data/x"])
            second.run(["ssh", "one", "echo second > /data/x"])
            assert first.path("one", "/data/x").read_text() == "first\n"
            assert second.path("one", "/data/x").read_text() == "second\n"
            assert not set(first.namespaces) & set(second.namespaces)
        assert not second.namespaces
        assert not second.directory.exists()
        assert first.run(["ssh", "one", "echo alive"]).stdout == "alive\n"
        left = first.popen(["sleep", "60"])
        assert len(first.namespaces) == 3
        wait_until(lambda: "sleep 60" in first.processes(), 10, "sleep to run")
    assert left.wait(5)
    assert not first.namespaces
    assert not first.directory.exists()
    with pytest.raises(LabError, match="no lab is up"):
        Lab.attach(first.directory)
    first.down()


@needs_lab
def test_a_dead_owner_s_lab_is_swept() -> None:
    """A lab whose process died without a word goes when the next one comes."""
    program = "import os; from tests.lab import *; print(Lab([Profile('one')]).up().directory, flush=True); os._exit(1)"
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    directory = Path(died.stdout.strip())
    assert (directory / "lab.json").exists(), died.stderr
    assert Lab.attach(directory).run(["ssh", "one", "echo still"]).stdout == "still\n"
    sweep()
    assert not directory.exists()


def test_others_are_left_alone(tmp_path: Path) -> None:
    """No pid that now is another process, and no directory that is no lab's, comes to harm."""
    record = tmp_path / "some.pid"
    record.write_text(f"{os.getpid()} 1\n")
    assert recorded(record) is None
    launch(["true"], record=record, log=tmp_path / "log")
    end(record)
    assert not record.exists()
    directory = Path(f"/var/tmp/rrmove-not-a-lab-{os.getpid()}")
    directory.mkdir()
    try:
        (directory / "precious").touch()
        with pytest.raises(LabError, match="left alone"):
            Lab([], directory).up()
        assert (directory / "precious").exists()
    finally:
        (directory / "precious").unlink()
        directory.rmdir()
    with pytest.raises(ValueError, match="elsewhere"):
        Lab([], tmp_path if tmp_path.is_relative_to("/tmp") else Path("/tmp/x"))


@needs_lab
def test_command_line(tmp_path: Path) -> None:
    """The command line builds a lab, uses it and takes it apart."""
    directory = f"/var/tmp/rrmove-lab-cli-{os.getpid()}"

    def say(*argv: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "tests.lab", "--directory", directory, *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    (tmp_path / "more.json").write_text('[{"name": "odd", "reset_seconds": [4, 8]}]')
    try:
        listed = say("up", "proxy", "--profiles", str(tmp_path / "more.json")).split()
        assert listed[::2] == ["odd", "proxy", "hetzner"]
        assert say("exec", "ssh", "proxy", "echo through > x").strip() == ""
        assert Path(say("path", "proxy", "x").strip()).read_text() == "through\n"
        assert say("on", "odd", "cat", "/proc/sys/kernel/ostype") == "Linux\n"
        assert '"connects": 1' in say("stats")
        assert "no profile nobody" in say("up", "nobody", code=1)
    finally:
        say("down")
    assert "no lab is up" in say("stats", code=1)


# Pure parts


def test_profiles() -> None:
    """Profiles survive JSON, and nonsense is refused."""
    assert all(Profile.from_json(profile.to_json()) == profile for profile in PROVIDERS.values())
    assert bits_per_second("160mbit") == 160 * MB
    for nonsense in (
        {"name": "switch"},
        {"name": "A b"},
        {"name": "x", "rate": "fast"},
        {"name": "x", "loss": 2.0},
        {"name": "x", "reset_seconds": [1, 2], "hang_seconds": [1, 2]},
        {"name": "x", "closed": "maybe"},
    ):
        with pytest.raises(ValueError, match=r"."):
            Profile.from_json(nonsense)
    with pytest.raises(TypeError, match=r"no colour"):
        Profile.from_json({"name": "x", "colour": "red"})
    with pytest.raises(ValueError, match="which is no node"):
        Lab([Profile("x", jump="nobody")])
    with pytest.raises(ValueError, match="names of their own"):
        Lab([Profile("x"), Profile("x")])


def test_who_calls() -> None:
    """The caller is read past whatever options the IP header has."""
    source, options, port = b"\x0a\x68\x05\x01", bytes(4), b"\x8f\x3c"
    rest = bytes(8) + b"\x06" + bytes(2) + source + bytes(4)
    assert caller(b"\x45" + rest + port + bytes(18)) == ("10.104.5.1", 0x8F3C)
    assert caller(b"\x46" + rest + options + port + bytes(18)) == ("10.104.5.1", 0x8F3C)


def offloaded(payload: int, size: int) -> bytes:
    """Make a frame as the kernel offloads it, to be cut up."""
    ethernet = bytes(12) + b"\x08\x00"
    ip = bytearray(20)
    ip[0], ip[9] = 0x45, 6
    ip[2:4] = (20 + 32 + payload).to_bytes(2, "big")
    ip[10:12] = (~ones_sum(bytes(ip)) & 0xFFFF).to_bytes(2, "big")
    tcp = bytearray(32)
    tcp[4:8] = (0xFFFFFF00).to_bytes(4, "big")  # wraps on its way
    tcp[12], tcp[13] = 8 << 4, 0x18
    tcp[16:18] = ones_sum((6 + 32 + payload).to_bytes(2, "big")).to_bytes(2, "big")
    vnet = bytes([1, 1]) + b"".join(n.to_bytes(2, sys.byteorder) for n in (66, size, 34, 16))
    return vnet + ethernet + ip + tcp + bytes(n % 251 for n in range(payload))


def ones_sum(data: bytes) -> int:
    """Sum 16-bit words in ones' complement."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return total % 0xFFFF or (0xFFFF if total else 0)


@pytest.mark.parametrize("lost", [{0}, {44}, {7}, {0, 1, 44}, {3, 5}, set(range(44)), {45}])
def test_a_lost_packet_is_cut_out(lost: set[int]) -> None:
    """The frames that are left hold all other bytes, at their place, with headers that are right."""
    payload, size = 44 * 1448 + 100, 1448
    frame = offloaded(payload, size)
    assert packets(frame) == 45
    whole, rebuilt = frame[76:], bytearray(payload)
    for kept in without(frame, lost):
        part = kept[76:]
        at = (int.from_bytes(kept[48:52], "big") - 0xFFFFFF00) % 2**32
        rebuilt[at : at + len(part)] = part
        assert int.from_bytes(kept[26:28], "big") == 52 + len(part)
        assert ones_sum(kept[24:44]) == 0xFFFF
        assert int.from_bytes(kept[60:62], "big") == 6 + 32 + len(part)
        assert kept[1] == (1 if len(part) > size else 0)
        assert bool(kept[57] & 8) == (at + len(part) == payload)
    for number in lost:
        end = min((number + 1) * size, payload)
        whole = whole[: number * size] + bytes(max(0, end - number * size)) + whole[end:]
    assert bytes(rebuilt) == whole
