"""Two processes of tests that start clusters at one time do not get in each other's way."""

import os
import subprocess
import sys

from tests.boot.conftest import REPOSITORY
from tests.slurm.claims import claim
from tests.slurm.cluster import BLOCK, free_port


def in_another_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_name_is_claimed_once_in_all_processes_and_free_when_its_owner_has_ended():
    name = f"test-{os.getpid()}"
    ask = f"from tests.slurm.claims import claim; print(claim({name!r}))"
    assert in_another_process(ask) == "True"
    assert claim(name)
    assert not claim(name)
    assert in_another_process(ask) == "False"


def test_ports_that_are_given_and_not_yet_used_are_not_given_again():
    mine = free_port(BLOCK)
    # Its search begins at the same port: by the process id, which is made the same.
    code = (
        f"import os; os.getpid = lambda: {os.getpid()}\n"
        "from tests.slurm.cluster import free_port; print(free_port(10))"
    )
    other = int(in_another_process(code))
    assert abs(other - mine) >= BLOCK
