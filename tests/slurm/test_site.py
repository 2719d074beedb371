"""The files with which a site switches the agent on, each in a job of a real cluster."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boot.conftest import Venv, lay_over, make_venv, wheel  # noqa: F401  # fixtures
from tests.slurm import trainings
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import SLURM_FILES
from tests.slurm.trainings import runs_of

SHOW = "import os; print([os.environ.get(n) for n in ('TRACEML_ENABLE', 'TRACEML_DIR')])"


@pytest.fixture
def shown(plain_cluster: Cluster) -> Iterator[Callable[..., str]]:
    """What the processes of a job see of the settings."""

    def show(*options: str, **extra: str) -> str:
        job = plain_cluster.submit(*options, "--wrap", f'python -S -c "{SHOW}"', **extra)
        plain_cluster.wait(job)
        return plain_cluster.output(job).strip()

    yield show


def test_jobs_that_ask_by_their_comment_are_recorded_and_others_are_not(
    plain_cluster: Cluster, shown: Callable[..., str]
) -> None:
    own = f"{plain_cluster.work}/traceml-runs"
    assert shown() == "[None, None]"
    assert shown("--comment=other,words") == "[None, None]"
    assert shown("--comment=other,traceml") == str(["1", own])
    assert shown("--comment=traceml", TRACEML_ENABLE="0") == "['0', None]"
    assert shown(TRACEML_ENABLE="1", TRACEML_DIR="/x y") == "['1', '/x y']"


def fold_by_epilog(cluster: Cluster, owner: int, **extra: str) -> subprocess.CompletedProcess[str]:
    """The epilog as slurmd runs it, for a job of that user."""
    script = cluster.directory.parent / "site" / "epilog.sh"
    job = {"SLURM_JOB_ID": "999999", "SLURM_JOB_UID": str(owner), "SLURM_JOB_GID": str(owner)}
    return subprocess.run(
        ["sh", str(script)],
        env={"PATH": "/usr/bin:/bin", **job, **extra},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_epilog_is_the_user_of_the_job_in_all_that_it_does(
    plain_cluster: Cluster, tmp_path: Path
) -> None:
    user = pwd.getpwnam("nobody")
    notes = plain_cluster.directory.parent / "site" / "run" / "traceml-agent" / "999999"
    notes.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as open_to_all:
        place = Path(open_to_all)
        place.chmod(0o755)
        own = place / "own"
        run_dir = own / "slurm-999999"
        run_dir.mkdir(parents=True)
        (run_dir / "rank00000-x.jsonl").touch()
        # What a user may write there: any directory, and any program.
        fold = own / "fold"
        fold.write_text(f'#!/bin/sh\n{{ id -u; id -G; echo "$@"; }} > {own}/proof\n')
        fold.chmod(0o755)
        (notes / "dir").write_text(f"{own}\n")
        (notes / "fold").write_text(f"{fold}\n")
        for path in (notes, *notes.iterdir(), own, *own.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
        done = fold_by_epilog(plain_cluster, user.pw_uid)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        uid, groups, arguments = (own / "proof").read_text().splitlines()
    assert int(uid) == user.pw_uid
    assert "0" not in groups.split()
    assert arguments == f"fold {run_dir}"
    assert not notes.exists()


def test_the_epilog_never_takes_a_node_out_of_service(
    plain_cluster: Cluster, tmp_path: Path
) -> None:
    for extra in ({}, {"SLURM_JOB_WORK_DIR": "/nowhere"}, {"PATH": "/bin:/usr/bin", "HOME": ""}):
        done = fold_by_epilog(plain_cluster, 12_345, **extra)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr


def without(what: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what} is not installed")


def modulecmd(tmp_path: Path) -> str:
    command = shutil.which("modulecmd")
    if command is None:
        without("environment-modules")
    return str(command)


def lmod(tmp_path: Path) -> str:
    """Lmod, unpacked: Debian installs it only in the place of Environment Modules."""
    lua = shutil.which("lua5.3")
    if lua is None:
        without("lua5.3, on which Lmod runs,")
    for refresh in (False, True):
        if refresh:
            subprocess.run(["apt-get", "update", "-q"], capture_output=True, timeout=200)
        found = subprocess.run(
            ["apt-get", "download", "-q", "lmod"], cwd=tmp_path, capture_output=True, timeout=200
        )
        if found.returncode == 0:
            break
    else:
        pytest.skip(f"Lmod cannot be had: {found.stderr.decode()[-300:]}")
    (package,) = tmp_path.glob("lmod_*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(tmp_path / "lmod")], check=True, timeout=60)
    program = next((tmp_path / "lmod").glob("usr/share/lmod/[0-9]*/libexec/lmod"))
    return f"LMOD_CMD={program} {lua} {program}"


@pytest.mark.slow
@pytest.mark.parametrize("modules", [modulecmd, lmod])
def test_the_module_file_lays_the_agent_over_a_python_without_it(
    plain_cluster: Cluster,
    make_venv: Callable[..., Venv],  # noqa: F811
    wheel: Path,  # noqa: F811
    tmp_path: Path,
    modules: Callable[[Path], str],
) -> None:
    command = modules(tmp_path)
    image, root = make_venv(), tmp_path / "site"
    lay_over(image, wheel, root)
    files = tmp_path / "modulefiles"
    files.mkdir()
    (files / "traceml").write_text((SLURM_FILES / "modulefile").read_text())
    show = f"{image.python} -c 'import sys; print(\"traceml_agent.startup\" in sys.modules)'"
    load = f'eval "$({command} sh load traceml)"'
    job = plain_cluster.submit(
        "--wrap",
        f"srun {show}; {load}; srun {show}",
        TRACEML_ROOT=str(root),
        MODULEPATH=str(files),
    )
    assert plain_cluster.wait(job) == "COMPLETED", plain_cluster.output(job)
    assert plain_cluster.output(job) == "False\nTrue\n"


@pytest.mark.slow
def test_the_variables_for_containers_switch_on_and_nothing_else(plain_cluster: Cluster) -> None:
    lines = (SLURM_FILES / "container.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert settings == {"TRACEML_ENABLE": "1"}
    script = trainings.write(plain_cluster, "plain.py", trainings.PLAIN)
    job = plain_cluster.submit("--wrap", f"python {script}", **settings)
    assert plain_cluster.wait(job) == "COMPLETED", plain_cluster.output(job)
    assert list(runs_of(plain_cluster, job)) == [f"slurm-{job}"]
