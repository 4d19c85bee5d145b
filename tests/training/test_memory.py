"""What is freed stays with the process, for the next step's activations."""

import subprocess
import sys

from tests.conftest import ROOT, clean_environment

CODE = """
import re
import torch
from stages.training import memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

if {keep}:
    memory.keep_freed()
activations = torch.ones(50 << 20)  # 200 MB
full = resident()
del activations
print(full - resident())
"""


def test_freed_memory_is_kept() -> None:
    environment = {
        name: value for name, value in clean_environment().items() if not name.startswith(("MALLOC", "LD_P"))
    }
    given_back = {}
    for keep in (True, False):
        command = [sys.executable, "-c", CODE.format(keep=keep)]
        given_back[keep] = int(subprocess.check_output(command, cwd=ROOT, text=True, env=environment))
    assert given_back[True] < 10
    assert given_back[False] > 190, "glibc, left alone, gives it back"
