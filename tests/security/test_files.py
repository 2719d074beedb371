"""Directories and files of a run belong to its user alone, and no trap laid for them works."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import TIMEOUT_S, Result, environment, run, runs_in, write
from traceml_agent.errors import UnsafeDirectory
from traceml_agent.schema.records import ProcessSample
from traceml_agent.spool.reader import read_spool
from traceml_agent.spool.rundir import make_run_dir
from traceml_agent.spool.writer import SpoolWriter

TRAINING = """
import os, signal, sys, time
import torch
from torch import nn

torch.set_num_threads(1)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(5):
    optimizer.zero_grad()
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
print("trained")
"""
OPEN_FILES = """
root = os.environ["TRACEML_DIR"]
for number in os.listdir("/proc/self/fd"):
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        continue
    if target.startswith(root):
        print(os.path.splitext(target)[1], os.get_inheritable(int(number)))
os.kill(os.getpid(), signal.SIGKILL)
"""
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", ["000", "077"])
def test_directories_and_files_have_the_rights_of_their_owner_whatever_the_umask(
    tmp_path: Path, umask: str
) -> None:
    runs = tmp_path / "new" / "parents" / "runs"
    killed = write(tmp_path, TRAINING + OPEN_FILES, "killed.py")
    returns = write(tmp_path, TRAINING, "returns.py")
    outputs = []
    for command in ([killed], ["-m", "traceml_agent", "view"], [returns]):
        done = subprocess.run(
            ["sh", "-c", f'umask {umask}; exec "$@"', "sh", sys.executable, *command],
            env=environment(tmp_path, True, TRACEML_DIR=str(runs)),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        outputs.append(done.stdout)
    files = {path.name: mode_of(path) for path in runs.rglob("*") if path.is_file()}
    assert set(files.values()) == {0o600}, files
    kinds = {path.partition(".")[2] for path in files}
    assert {"ring", "alive", "stack", "jsonl", "json", "txt", "lock"} <= {
        kind.rpartition(".")[2] for kind in kinds
    }
    assert [mode_of(path) for path in (runs, *runs.iterdir())] == [0o700] * 3
    assert all(mode_of(path) & 0o022 == 0 for path in (runs.parent, runs.parent.parent))
    # Nothing of it is handed on to a program that the training starts.
    descriptors = [line.split() for line in outputs[0].splitlines() if line.startswith(".")]
    assert {kind for kind, _ in descriptors} == {".jsonl", ".ring", ".alive", ".stack"}
    assert {inheritable for _, inheritable in descriptors} == {"False"}


def link_to(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    directory.symlink_to(tmp_path / "victim")


def dangling_link(directory: Path, tmp_path: Path) -> None:
    directory.symlink_to(tmp_path / "victim" / "gone")


def open_to_all(directory: Path, _: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def open_to_the_group(directory: Path, _: Path) -> None:
    directory.mkdir()
    directory.chmod(0o770)


def of_somebody_else(directory: Path, _: Path) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    os.chown(directory, NOBODY, NOBODY)


def no_directory(directory: Path, _: Path) -> None:
    directory.write_text("a file")


Trap = Callable[[Path, Path], None]


def each(*traps: Trap) -> list[object]:
    """Parameters; only root can lay one of them."""
    return [
        pytest.param(trap, marks=[needs_root] if trap is of_somebody_else else [], id=trap.__name__)
        for trap in traps
    ]


@pytest.mark.parametrize(
    "trap",
    each(link_to, dangling_link, open_to_all, open_to_the_group, of_somebody_else, no_directory),
)
def test_a_directory_that_is_a_trap_is_refused(tmp_path: Path, trap: Trap) -> None:
    runs = tmp_path / "runs"
    assert make_run_dir(runs, "other") == runs / "other"
    trap(runs / "chosen", tmp_path)
    with pytest.raises((UnsafeDirectory, FileExistsError)):
        make_run_dir(runs, "chosen")
    assert mode_of(runs / "other") == 0o700


def trained(tmp_path: Path, **variables: str) -> Result:
    result = run(tmp_path, write(tmp_path, TRAINING), TRACEML_RUN_ID="chosen", **variables)
    assert (result.returncode, result.stdout, result.other_stderr) == (0, "trained\n", "")
    return result


@pytest.mark.parametrize("trap", each(link_to, open_to_all, of_somebody_else))
def test_a_run_directory_that_is_a_trap_is_not_used_and_one_line_says_where_the_run_is(
    tmp_path: Path, trap: Trap
) -> None:
    (tmp_path / "runs").mkdir()
    trap(tmp_path / "runs" / "chosen", tmp_path)
    result = trained(tmp_path, TRACEML_SUMMARY="0")
    fallback = tmp_path / f"traceml-agent-{os.geteuid()}" / "runs" / "chosen"
    refused, recording = result.own_lines
    assert refused.startswith(f"traceml: cannot write to {tmp_path / 'runs'} (")
    assert refused.endswith(f"; the run goes to {fallback}")
    assert recording.startswith(f"traceml: recording to {fallback}")
    assert len(list(fallback.glob("*.jsonl"))) == 1
    assert files_in(tmp_path / "victim", tmp_path / "runs") == []


def files_in(*directories: Path) -> list[str]:
    """Regular files, through a link to a directory too."""
    return [
        name
        for directory in directories
        for _, _, names in os.walk(directory, followlinks=True)
        for name in names
        if os.path.isfile(os.path.join(directory, name))
    ]


@pytest.mark.parametrize(
    ("trap", "depth"),
    [
        pytest.param(of_somebody_else, "", marks=needs_root, id="top"),
        pytest.param(link_to, "runs", id="middle"),
        pytest.param(open_to_all, "runs/chosen", id="bottom"),
    ],
)
def test_with_a_trap_in_the_last_place_too_nothing_is_recorded_and_one_line_says_why(
    tmp_path: Path, trap: Trap, depth: str
) -> None:
    """Anybody can make that directory in /tmp beforehand."""
    place = tmp_path / f"traceml-agent-{os.geteuid()}" / depth
    place.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    trap(place, tmp_path)
    result = trained(tmp_path, TRACEML_DIR="/dev/null/runs")
    assert len(result.own_lines) == 1
    assert result.own_lines[0].startswith("traceml: nothing is recorded: cannot write to ")
    assert "set TRACEML_DIR to a directory of yours" in result.own_lines[0]
    assert files_in(tmp_path / "victim", place) == []


def test_runs_that_somebody_laid_into_the_last_place_are_not_shown_as_ours(tmp_path: Path) -> None:
    trained(tmp_path, TRACEML_DIR="/dev/null/runs")
    place = tmp_path / f"traceml-agent-{os.geteuid()}"
    assert "chosen" in runs_command(tmp_path)
    place.chmod(0o777)
    assert "chosen" not in runs_command(tmp_path)


def runs_command(tmp_path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "traceml_agent", "runs"],
        env=environment(tmp_path, True, TRACEML_DIR=str(tmp_path / "none")),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.stdout


PLANTED = """
import os, socket
from pathlib import Path
from traceml_agent.spool.format import spool_path

run_dir = Path(os.environ["TRACEML_DIR"]) / "chosen"
run_dir.mkdir(mode=0o700, parents=True)
spool = spool_path(run_dir, socket.gethostname(), os.getpid(), 0, 0)
names = {names}
for name in names:
    name = spool.with_suffix(name).name if name.startswith(".") else name
    (run_dir / name).symlink_to(Path(os.environ["TRACEML_DIR"]).parent / "victims" / name)
"""


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "names",
    [
        [".jsonl"],
        [".ring", ".alive", ".stack", "fold.lock", "final_summary.json", "final_summary.txt"],
    ],
    ids=["spool", "others"],
)
def test_links_in_a_run_directory_are_never_written_through(
    tmp_path: Path, names: list[str], exists: bool
) -> None:
    victims = tmp_path / "victims"
    victims.mkdir()
    planting = PLANTED.format(names=names)
    if exists:
        planting += "    (run_dir / name).touch()\n"
    script = write(tmp_path, "import torch\n" + planting + TRAINING)
    result = run(tmp_path, script, TRACEML_RUN_ID="chosen")
    assert (result.returncode, result.stdout, result.other_stderr) == (0, "trained\n", "")
    assert [path.stat().st_size for path in victims.iterdir()] == [0] * len(names) * exists
    (path,) = (path for path in result.run_dir.glob("*.jsonl") if not path.is_symlink())
    spool = read_spool(path)
    assert spool.end is not None
    assert spool.end.steps == 5
    assert (result.run_dir / "final_summary.json").is_symlink() is False


def test_a_spool_that_is_thinned_keeps_its_rights_and_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("content")
    path = tmp_path / "spool.jsonl"
    path.with_name(f".{path.name}.new").symlink_to(victim)
    before = os.umask(0)
    try:
        writer = SpoolWriter(path, 20_000)
        while writer.written < 60_000:
            writer.write([ProcessSample(writer.written, 1, None, None, None)])
        writer.close()
    finally:
        os.umask(before)
    assert writer.size < writer.written
    assert (mode_of(path), path.is_symlink(), victim.read_text()) == (0o600, False, "content")


@needs_root
@pytest.mark.parametrize("ids", ["os.setresuid(65534, 0, 0)", "os.setresgid(65534, 0, 0)"])
@pytest.mark.parametrize("value", ["1", "force"])
def test_a_process_with_the_rights_of_another_user_is_not_recorded(
    tmp_path: Path, ids: str, value: str
) -> None:
    """Whoever starts a setuid program must not choose where it writes."""
    inner = "import os, sys; print(os.getuid() == os.geteuid(), 'traceml_agent' in sys.modules)"
    outer = f"import os, sys; {{}}; os.execv(sys.executable, [sys.executable, '-c', {inner!r}])"
    said = []
    for change in ("pass", ids):
        done = subprocess.run(
            [sys.executable, "-c", outer.format(change)],
            env=environment(tmp_path, True, TRACEML_ENABLE=value),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout.split())
    assert said[0] == ["True", "True"]
    assert said[1] == [str("gid" in ids), "False"]
    assert runs_in(tmp_path) == []
