"""A training on two machines, of which one is cut off from the other: it goes on when that is back, to the same bytes.

The machines are network namespaces: each has an address of its own, and a cable is between them.
"""

import shlex
import subprocess
from collections.abc import Callable

import pytest

from tests.conftest import Project, clean_environment
from tests.test_killed import check, undisturbed
from tests.test_several_processes import EPOCHS, SHORT, TRAIN, last_resumed, lock, made

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
CUT_SECONDS = 20
# What each machine sets, in its own clone; docs/scale.md has the same.
SETTINGS = {
    "PET_NNODES": "2",
    "PET_RDZV_BACKEND": "c10d",
    "PET_RDZV_ENDPOINT": f"{FIRST}:29400",
    "PET_RDZV_ID": "flowers",
}
MACHINES = f"""
set -eu
ip link set lo up
unshare --net sleep 600 & other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link add cable type veth peer name cable netns $other
ip address add {FIRST}/24 dev cable
ip link set cable up
on_second() {{ nsenter --target $other --net "$@"; }}
on_second ip link set lo up
on_second ip address add {SECOND}/24 dev cable
on_second ip link set cable up

export GLOO_SOCKET_IFNAME=cable
(cd "$1"; PET_RDZV_CONF=is_host=1 PET_LOCAL_ADDR={FIRST} dvc repro train) & first=$!
export PET_RDZV_CONF=is_host=0 PET_LOCAL_ADDR={SECOND}
(cd "$2"; until on_second {shlex.join(TRAIN)}; do sleep 1; done) & second=$!
until ls "$1"/.repronet/checkpoints/*.safetensors 2>/dev/null; do sleep 0.1; done
ip link set cable down
sleep {CUT_SECONDS}
ip link set cable up
wait $first
wait $second
"""


@pytest.fixture(scope="module")
def expected(make_project: Callable[[], Project]) -> dict[str, str]:
    """Of two processes on one machine."""
    return undisturbed(made(make_project))


@pytest.mark.slow
def test_one_is_cut_off(make_project: Callable[[], Project], expected: dict[str, str]) -> None:
    first, second = made(make_project), made(make_project)
    for project in (first, second):
        project("dvc", "repro", "prepare")
    command = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", MACHINES, "machines"]
    done = subprocess.run(
        [*command, str(first.root), str(second.root)],
        env=clean_environment() | SETTINGS | SHORT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "a process of the training was killed, or hung: all start anew" in done.stdout
    first("dvc", "repro")
    check(first, lock(first), expected, last_resumed(done.stdout), EPOCHS)
    assert not (second.root / "models/net.safetensors").exists(), "only the first process writes"
