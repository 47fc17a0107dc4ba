"""Environment variables of this process, of workers, of a Ray of our own. The user's own win."""

import os

# Threads that wait must not take a core from those that work (a step took 3x as long), and the
# Hub's tokenizers fork. Read when a process starts.
_COMPUTING = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Where layers are compiled, each process would start up to 32 that compile.
    "TORCHINDUCTOR_COMPILE_THREADS": "4",
}
_PRIVATE_RAY = {
    # Ray's default is 15: beside any other program of the machine a run would starve.
    "RAY_worker_niceness": "0",
    "RAY_DATA_NON_TTY_PROGRESS_LOG_INTERVAL": "60",  # it writes a dozen lines each time
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy laptop needs more than 5 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # reports are taken once per check
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one machine is not taken away in part
}


def set_environment() -> None:
    """Sets what this process and the Ray that it starts read.

    Every job calls it before torch is imported, and `start_ray` for whoever uses the library.
    """
    private = {} if os.environ.get("RAY_ADDRESS") else _PRIVATE_RAY
    for name, value in (_COMPUTING | private).items():
        os.environ.setdefault(name, value)


def worker_env(num_threads: int | None = None) -> dict[str, str]:
    """Variables of a process that computes, wherever in the cluster it starts.

    Args:
        num_threads: of OpenMP; None: as many as Ray gives it CPUs.
    """
    found = {name: os.environ.get(name, value) for name, value in _COMPUTING.items()}
    return found if num_threads is None else found | {"OMP_NUM_THREADS": str(num_threads)}
