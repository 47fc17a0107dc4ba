"""Training steps on the stand-in device, in a process of their own.

Autograd counts the devices at the first backward pass of a process, and any test may have made it.
"""

import subprocess
import sys
from pathlib import Path


def test_training_steps():
    steps = Path(__file__).with_name("training_steps.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(steps)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
