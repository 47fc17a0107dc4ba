"""Escapes are tried, and contained."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from a2d_ray.sandbox import jail
from a2d_ray.sandbox import runner as sandbox
from a2d_ray.sandbox.runner import Limits, SandboxError, run_code

ROOT = Path(__file__).parent.parent.parent
AMPLE = Limits(seconds=100, memory_mb=256)  # a busy machine takes its time
SHORT = Limits(seconds=3, memory_mb=256)

try:
    sandbox.check_isolation()
except SandboxError as error:  # the refusal itself is tested below
    isolated = pytest.mark.skip(reason=str(error))
else:
    isolated = pytest.mark.skipif(False, reason="")


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "print('x' * 1000)",
        "import math, re, json, collections, heapq, itertools, hashlib, typing, functools",
        "open('scratch', 'w').write('fine'); assert open('scratch').read() == 'fine'",
        "import threading; t = threading.Thread(target=print); t.start(); t.join()",
        "import subprocess as s, sys; assert s.check_output([sys.executable, '-c', 'print(4)'])",
        "import os; assert os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)[1] == 0",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start(); "
        "p.join(); assert p.exitcode == 0",
        "import mmap, os; m = mmap.mmap(-1, 4096); pid = os.fork()\n"
        "if pid == 0: m[0] = 7; os._exit(0)\n"
        "os.waitpid(pid, 0); assert m[0] == 7",
    ],
)
def test_ordinary_programs_run(code):
    assert run_code(code, AMPLE) == sandbox.Execution(is_ok=True, reason="ok")


@isolated
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert 1 == 2, 'wrong'", "AssertionError: wrong"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "exit code 0"),
        ("import ctypes; ctypes.string_at(0)", ""),
        ("x = 'a' * (1 << 30)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
        ("open('big', 'wb').write(bytes(64 << 20))", "OSError"),
        ("while True: print('flood' * 1000)", ""),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_failures_and_excess_are_failures(code, reason):
    outcome = run_code(code, AMPLE)
    assert not outcome.is_ok and reason in outcome.reason


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "import time\nend = time.monotonic() + 200\nwhile time.monotonic() < end: pass",
        "import time; time.sleep(200)",
        "import signal, time\nsignal.alarm(0)\nfor _ in range(200): time.sleep(1)",
    ],
)
def test_what_takes_longer_than_its_limit_is_ended(code):
    started = time.monotonic()
    assert run_code(code, SHORT).reason == "timeout"
    assert SHORT.seconds <= time.monotonic() - started < 60


LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
SMALL = Limits(seconds=100, memory_mb=200)
HOARDERS = {
    "shared memory": "libc.shmat.restype = ctypes.c_void_p\n"
    "for _ in range(6):\n"
    "    name = libc.shmget(0, 64 << 20, 0o1600)\n"
    "    assert name >= 0, os.strerror(ctypes.get_errno())\n"
    "    place = ctypes.c_void_p(libc.shmat(name, None, 0))\n"
    "    ctypes.memset(place, 1, 64 << 20)\n"
    "    libc.shmdt(place)\n",
    "messages": "for _ in range(1000):\n"
    "    queue = libc.msgget(0, 0o1600)\n"
    "    assert queue >= 0, os.strerror(ctypes.get_errno())\n"
    "    for _ in range(2): assert libc.msgsnd(queue, b'1' * 8008, 8000, 0) == 0\n",
    "files in memory": "for name in range(20):\n"
    "    file = os.memfd_create(str(name))\n"
    "    for _ in range(16): os.write(file, bytes(1 << 20))\n",
    "a file system": "assert libc.unshare(0x10000000 | 0x00020000) == 0, 'not permitted'\n"
    "assert libc.mount(b'x', os.getcwd().encode(), b'tmpfs', 0, b'size=1g') == 0\n"
    "os.chdir(os.getcwd())\n"
    "for name in range(20): open(str(name), 'wb').write(bytes(15 << 20))\n",
    "a file system of a child": "number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
    "pid = libc.syscall(number, 0x10000000 | 0x00020000 | 17, None, None, None, None)\n"
    "assert pid >= 0, 'not permitted'\n"
    "if pid == 0:\n"
    "    os._exit(libc.mount(b'x', os.getcwd().encode(), b'tmpfs', 0, b'size=1g'))\n"
    "assert os.waitpid(pid, 0)[1] != 0\n",
    "many files": "for name in range(100_000): open(str(name), 'w').close()\n",
    "keys": "number = {'x86_64': 248, 'aarch64': 217}[os.uname().machine]\n"
    "assert libc.syscall(number, b'user', b'a', b'b', 1, -2) >= 0, 'not permitted'\n",
    "other files in shared memory": "open('/dev/shm/x', 'w')\n",
}


@isolated
@pytest.mark.parametrize("name", HOARDERS)
def test_memory_that_no_limit_of_a_process_counts_is_denied(name):
    outcome = run_code(LIBC + HOARDERS[name], SMALL)
    assert not outcome.is_ok
    words = ("not permitted", "not implemented", "No space left", "No such file")
    assert any(word in outcome.reason for word in words), outcome.reason


@isolated
def test_a_new_file_system_stays_out_of_reach_of_every_call_that_makes_namespaces():
    """clone3 is missing, so that libc takes clone, whose flags can be read."""
    code = "assert libc.syscall(435, bytes(64), 64) == -1 and ctypes.get_errno() == 38\n"
    assert run_code(LIBC + code, AMPLE).reason == "ok"


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_the_numbers_of_denied_calls_are_the_kernels(machine, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"needs {path}")
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text()))
    column = list(jail.PROCESSORS).index(machine)
    for name, pair in jail.DENIED.items():
        assert int(numbers.get(name, pair[column])) == pair[column], name
    assert int(numbers["clone"]) == jail.PROCESSORS[machine].clone
    assert int(numbers["pivot_root"]) == jail.PROCESSORS[machine].pivot_root


@isolated
def test_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert "unreachable" in run_code(code, AMPLE).reason
        with pytest.raises(TimeoutError):
            server.accept()
    lookup = "import socket; socket.getaddrinfo('example.org', 80)"
    assert not run_code(lookup, AMPLE).is_ok


@isolated
def test_no_files_of_this_machine(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("s3cret")
    for path in (secret, Path("/etc/passwd"), Path(__file__), Path.home() / ".bashrc"):
        assert not run_code(f"open({str(path)!r}).read()", AMPLE).is_ok
    assert not run_code(f"open({str(secret)!r}, 'w')", AMPLE).is_ok
    assert not run_code("open('/usr/evil', 'w')", AMPLE).is_ok
    assert not run_code("open('/evil', 'w')", AMPLE).is_ok
    assert secret.read_text() == "s3cret" and not Path("/usr/evil").exists()
    listing = "import os; assert set(os.listdir('/')) <= {'usr', 'lib', 'lib64', 'bin', 'proc', "
    listing += f"'dev', 'work', {sys.base_prefix.split('/')[1]!r}}}, os.listdir('/')"
    assert run_code(listing, AMPLE).is_ok


@isolated
def test_no_environment_no_privileges_no_other_process():
    os.environ["A2D_TEST_SECRET"] = "s3cret"
    try:
        code = (
            "import os\n"
            "assert 'A2D_TEST_SECRET' not in os.environ\n"
            "assert os.getpid() == 1 and os.getuid() != 0\n"
            "assert [p for p in os.listdir('/proc') if p.isdigit()] == ['1']\n"
            "status = open('/proc/self/status').read()\n"
            "assert 'CapEff:\\t0000000000000000' in status and 'NoNewPrivs:\\t1' in status\n"
        )
        assert run_code(code, AMPLE).reason == "ok"
    finally:
        del os.environ["A2D_TEST_SECRET"]
    remount = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(None, b'/usr', None, 32 | 4096, None) == 0\n"
    )
    assert not run_code(remount, AMPLE).is_ok
    in_user_namespace = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.unshare(0x10000000 | 0x00020000)\n"
        "assert libc.mount(None, b'/usr', None, 32 | 4096, None) == 0\n"
    )
    assert not run_code(in_user_namespace, AMPLE).is_ok


@isolated
def test_a_fork_bomb_ends_with_the_sandbox(monkeypatch):
    place = tempfile.mkdtemp(dir="/tmp")
    os.chmod(place, 0o755)
    monkeypatch.setattr(tempfile, "tempdir", place)
    code = (
        "import os, time\n"
        "for _ in range(10000):\n"
        "    try:\n"
        "        os.fork()\n"
        "    except OSError:\n"
        "        time.sleep(0.01)\n"
        "time.sleep(1000)\n"
    )
    assert run_code(code, SHORT).reason == "timeout"
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\n"
    assert run_code(daemon, AMPLE).is_ok
    assert os.listdir(place) == []
    os.rmdir(place)
    deadline = time.monotonic() + 60
    while alive := _sandboxes_left():
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _sandboxes_left():
    """Processes of sandboxes that this process started, or that lost theirs."""
    return [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"jail.py" in _read(path) and _parent(path.parent) in (1, os.getpid())
    ]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parent(folder):
    return int(_read(folder / "stat").rpartition(b")")[2].split()[1] or 0)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_it_refuses_where_nothing_isolates():
    code = (
        "from a2d_ray.sandbox.runner import run_code, SandboxError\n"
        'try:\n    run_code(\'open("ran", "w")\')\n'
        "except SandboxError as error:\n    print('refused', error)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.startswith("refused this machine cannot isolate"), done.stderr
    assert "unprivileged user namespaces" in done.stdout
    assert not (ROOT / "ran").exists()
