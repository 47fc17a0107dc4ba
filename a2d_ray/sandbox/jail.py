"""Builds the sandbox around itself and runs code in it. Standard library only; run as a script.

New namespaces for mounts, processes, network, IPC and names; a root of tmpfs with the interpreter
bound read only; no capabilities, no new privileges; limits; a seccomp filter on what would pass
them. The outer process stays to wait and to kill: when the first process of the new process
namespace ends, the kernel ends all others.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
from collections import namedtuple

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_PDEATHSIG = 1
PR_CAP_AMBIENT = 47
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
LAST_CAPABILITY = 63
MAX_FILES = 1024  # of the place to write; each takes kernel memory that its size does not show

Processor = namedtuple("Processor", "audit pivot_root clone")  # word; system call numbers
PROCESSORS = {
    "x86_64": Processor(0xC000003E, 155, 56),
    "aarch64": Processor(0xC00000B7, 41, 220),
}
# Numbers on x86_64 and aarch64 of what takes memory that no limit of a process counts, makes
# namespaces (in a new one of users, code may mount), or opens much of the kernel.
DENIED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "ptrace": (101, 117),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
}
CLONE3 = 435
CLONE_NEW = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
CLONE_NEW |= 0x02000000  # cgroups
X32 = 0x40000000  # x86_64: numbers from here on are the same calls under another name
FIRST_UID = 1_000_000  # of nobody; one per sandbox, so that the count of its processes is its own
TIMEOUT_CODE = 124

LIBC = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    """A libc function that must succeed."""
    if getattr(LIBC, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source, target, kind, flags, data=None):
    """mount(2)."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    call("mount", encoded[0], encoded[1], encoded[2], flags, encoded[3])


def enter_namespaces():
    """New namespaces; without root, in a user namespace that maps this user to itself."""
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    if os.geteuid() == 0:
        call("unshare", spaces)
        return
    uid = os.geteuid()
    gid = os.getegid()
    call("unshare", spaces | CLONE_NEWUSER)
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def build_root(root, prefixes, disk_mb):
    """A tmpfs with the interpreter, /proc, /dev/null and a small place to write."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in prefixes:
        place = root + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), place)
            continue
        os.makedirs(place, exist_ok=True)
        mount(path, place, None, MS_BIND | MS_REC)
        mount(None, place, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    for name in ("proc", "dev", "work", "old"):
        os.mkdir(f"{root}/{name}")
    for name in ("null", "zero", "urandom"):
        with open(f"{root}/dev/{name}", "w"):
            pass
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    size = f"size={disk_mb}m,nr_inodes={MAX_FILES},mode=777"
    mount("tmpfs", f"{root}/work", "tmpfs", MS_NOSUID | MS_NODEV, size)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_RDONLY)
    os.chdir(root)
    call("syscall", PROCESSORS[os.uname().machine].pivot_root, b".", b"old")
    os.chdir("/")
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    mount(None, "/", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/work")


def drop_privileges(limits):
    """Another user, no capabilities, no way to gain any; limits."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    LIBC.prctl(PR_CAP_AMBIENT, 4, 0, 0, 0)  # clear all
    for capability in range(LAST_CAPABILITY + 1):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    memory = limits["memory_mb"] << 20
    disk = limits["disk_mb"] << 20
    seconds = int(limits["seconds"]) + 1
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, limits["num_processes"]),
    ):
        resource.setrlimit(kind, (value, value))
    if os.geteuid() == 0:
        uid = FIRST_UID + int.from_bytes(os.urandom(3))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    call("capset", header, nothing)


def system_call_filter(machine):
    """BPF that refuses `DENIED` and namespaces by clone; clone3, whose flags lie in memory that a
    filter cannot read, is reported missing, so that libc takes clone.

    Source: Linux, Documentation/userspace-api/seccomp_filter.rst; struct seccomp_data is number,
    architecture, instruction pointer, and from byte 16 the arguments, of which the low half is
    first on both machines.
    """
    load = 0x20
    equal = 0x15
    at_least = 0x35
    any_bit = 0x45
    leave = 0x06
    kill = 0x80000000
    allow = 0x7FFF0000
    error = 0x00050000
    column = list(PROCESSORS).index(machine)
    audit, _, clone = PROCESSORS[machine]
    steps = [(load, 0, 0, 4), (equal, 1, 0, audit), (leave, 0, 0, kill), (load, 0, 0, 0)]
    for number in sorted(numbers[column] for numbers in DENIED.values()):
        steps += [(equal, 0, 1, number), (leave, 0, 0, error | errno.EPERM)]
    steps += [(at_least, 0, 1, X32), (leave, 0, 0, error | errno.ENOSYS)]
    steps += [(equal, 0, 1, CLONE3), (leave, 0, 0, error | errno.ENOSYS)]
    steps += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 1, CLONE_NEW)]
    steps += [(leave, 0, 0, error | errno.EPERM), (leave, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def filter_system_calls():
    """Installs the filter; nothing inside can take it off."""
    code = system_call_filter(os.uname().machine)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def run_program(code, sign):
    """Runs the code as a program, then writes the sign of its end."""
    exec(compile(code, "candidate.py", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
    os.write(1, sign.encode())


def report(error):
    """The error as one line; what the code did to the streams does not matter."""
    os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace")[:2000])


def inside(order, code):
    """The first process of the new process namespace."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    build_root(order["root"], order["prefixes"], order["limits"]["disk_mb"])
    drop_privileges(order["limits"])
    filter_system_calls()
    try:
        run_program(code, order["sign"])
    except BaseException as error:
        report(error)
        os._exit(1)
    os._exit(0)


def wait(child, seconds):
    """The child's exit code; TIMEOUT_CODE after it was killed for taking too long."""

    def stop(*_):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os._exit(TIMEOUT_CODE)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main():
    """stdin: a line of JSON, then the code."""
    order = json.loads(sys.stdin.readline())
    code = sys.stdin.read()
    if os.uname().machine not in PROCESSORS:
        raise SystemExit(f"the sandbox knows {sorted(PROCESSORS)}, not {os.uname().machine}")
    enter_namespaces()
    child = os.fork()
    if child == 0:
        try:
            inside(order, code)
        except BaseException as error:
            report(error)
        os._exit(2)
    status = wait(child, order["limits"]["seconds"])
    os._exit(status if 0 <= status < 126 else 1)


if __name__ == "__main__":
    main()
