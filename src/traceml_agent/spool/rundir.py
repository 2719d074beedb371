"""The run directory: made with the rights of its owner alone, or refused."""

import os
import stat
import tempfile
from pathlib import Path

from traceml_agent.errors import UnsafeDirectory

_REMOTE_FILE_SYSTEMS = frozenset(
    (
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "cifs",
        "smb3",
        "beegfs",
        "ceph",
        "9p",
        "afs",
        "panfs",
        "pvfs2",
        "orangefs",
        "glusterfs",
    )
)


SPOOLS_ON_NODE = "spools"
"""Directory of spools that lie on their node, below that of this user for temporary files."""


def make_run_dir(runs_dir: Path, run_id: str) -> Path:
    """Creates `runs_dir/run_id` (0700) and returns it. Raises OSError and UnsafeDirectory."""
    _make_parents(runs_dir)
    runs_dir.mkdir(mode=0o700, exist_ok=True)
    run_dir = runs_dir / run_id
    run_dir.mkdir(mode=0o700, exist_ok=True)
    reason = why_unsafe(run_dir)
    if reason is not None:
        raise UnsafeDirectory(reason)
    if not os.access(run_dir, os.W_OK | os.X_OK):
        raise PermissionError(13, "not writable", str(run_dir))
    return run_dir


def why_unsafe(directory: Path) -> str | None:
    """Why nothing may be written below a directory; None if it may, or does not exist yet.

    Raises OSError.
    """
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return f"{directory} is no directory (a symbolic link is not followed)"
    if status.st_uid != os.geteuid():
        return f"{directory} belongs to user {status.st_uid}, not to you"
    if status.st_mode & 0o022:
        return f"others may write to {directory}; chmod 700 it"
    return None


def _make_parents(directory: Path) -> None:
    """Makes what is missing above a directory; whatever the umask, nobody else may write there."""
    missing = [parent for parent in directory.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o755, exist_ok=True)


def is_local(directory: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a directory lies on a local file system. Where that cannot be told: yes."""
    try:
        lines = mountinfo.read_text(errors="replace").splitlines()
        target = str(directory.resolve())
    except OSError:
        return True
    longest, kind = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # a later mount on the same point hides the earlier
            longest, kind = len(point), rest.split()[0]
    return kind not in _REMOTE_FILE_SYSTEMS and not kind.startswith("fuse.")


def fallback_runs_dir() -> Path:
    """Where runs go while the configured directory cannot be had; readers look here too."""
    return Path(tempfile.gettempdir()) / f"traceml-agent-{os.geteuid()}" / "runs"
