"""Real installations in fresh virtual environments, one for each Python that is there."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
STARTUP_FILES = ("_traceml_boot.py", "traceml_agent.pth", "traceml_agent.start")
CHILD_TIMEOUT_S = 60


def pythons() -> dict[str, Path]:
    """Interpreters by minor version, ours first: the one that runs this, pyenv's, those on PATH."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": Path(sys.executable)}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for directory in sorted(pyenv.glob("*.*.*")):
        minor = ".".join(directory.name.split(".")[:2])
        if (directory / "bin/python").exists():
            found.setdefault(minor, directory / "bin/python")
    for minor in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        on_path = shutil.which(f"python{minor}")
        if on_path is not None and ".pyenv/shims" not in on_path:
            found.setdefault(minor, Path(on_path))
    return found


PYTHONS = pythons()
SUPPORTED = [minor for minor in PYTHONS if tuple(map(int, minor.split("."))) >= (3, 10)]


def run(command: list[str], environ: Mapping[str, str], **options: object) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command,
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command}: {done.stderr}\n{done.stdout}"
    return str(done.stdout)


def installer(python: Path) -> list[str]:
    """The start of a command that installs into the environment of `python`."""
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        # Copies: the tests change installed files, which must not be links into a cache.
        return [str(uv), "pip", "install", "-q", "--link-mode", "copy", "-p", str(python)]
    return [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]


@dataclass(frozen=True)
class Venv:
    """A virtual environment and the directory its children may write to."""

    path: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next(self.path.glob("lib/python*/site-packages"))

    def environ(self, **variables: str) -> dict[str, str]:
        """Nothing of the environment that the tests run in but what a child cannot do without."""
        return {
            "PATH": f"{self.path / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TRACEML_DIR": str(self.home / "runs"),
            **variables,
        }

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs its Python with these arguments and variables."""
        return subprocess.run(
            [str(self.python), *arguments],
            env=self.environ(**variables),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )

    def install(self, *what: str) -> None:
        """Installs without dependencies."""
        run([*installer(self.python), "--no-deps", *what], os.environ)

    def link_dependencies(self) -> None:
        """Makes importable what the agent needs; for the Python that runs the tests only."""
        for name in ("wrapt", "psutil", "pynvml", "orjson", "platformdirs"):
            spec = importlib.util.find_spec(name)
            assert spec is not None and spec.origin is not None
            source = Path(spec.origin)
            if spec.submodule_search_locations:
                source = source.parent
            (self.site_packages / source.name).symlink_to(source)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built once a session."""
    out = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), "."],
        os.environ,
        cwd=REPOSITORY,
    )
    return next(out.glob("*.whl"))


@pytest.fixture
def make_venv(tmp_path: Path) -> Callable[..., Venv]:
    """Creates an empty environment for a Python; the one that runs the tests by default."""

    def make(python: Path = Path(sys.executable), name: str = "venv", *options: str) -> Venv:
        path = tmp_path / name
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        run([str(python), "-m", "venv", "--without-pip", *options, str(path)], clean)
        home = tmp_path / f"{name}-home"
        home.mkdir()
        return Venv(path, home)

    return make


@pytest.fixture
def venv(make_venv: Callable[..., Venv], wheel: Path) -> Venv:
    """A fresh environment with the wheel in it, which the test may change."""
    made = make_venv()
    made.install(str(wheel))
    return made


@pytest.fixture(scope="session", params=SUPPORTED)
def any_venv(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Venv]:
    """An environment with the wheel, for each supported Python. Tests must not change it."""
    base = tmp_path_factory.mktemp(f"python{request.param}")
    python = PYTHONS[request.param]
    clean = {"PATH": os.environ["PATH"], "HOME": str(base)}
    run([str(python), "-m", "venv", "--without-pip", str(base / "venv")], clean)
    made = Venv(base / "venv", base)
    made.install(str(wheel))
    yield made


def lay_over(image: Venv, wheel: Path, root: Path) -> None:
    """Runs `agent/kubernetes/install.sh` for the Python of an image without the agent."""
    # The image's `python -m pip`: this one, without the dependencies that need an index.
    python = root.with_name("python-with-pip")
    python.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -m ]; then shift 3; '
        f'exec {sys.executable} -m pip install --no-deps -q "$@"; fi\n'
        f'exec {image.python} "$@"\n'
    )
    python.chmod(0o755)
    run(
        ["sh", str(REPOSITORY / "agent" / "kubernetes" / "install.sh"), str(root)],
        {**os.environ, "PYTHON": str(python), "TRACEML_PACKAGE": str(wheel)},
    )


def modules_of_agent(listing: str) -> list[str]:
    """The names in a printed list that belong to the agent or to a dependency of it."""
    pattern = re.compile(r"_?traceml.*|wrapt.*|psutil.*|orjson.*|platformdirs.*|pynvml.*")
    return sorted(name for name in listing.split() if pattern.fullmatch(name))


def command_line(
    tmp_path: Path, *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Runs `traceml-agent ...` with the Python that runs the tests."""
    return subprocess.run(
        # -I: what stands in PYTHONPATH and in the directory is for the command asked about.
        [sys.executable, "-I", "-m", "traceml_agent", *arguments],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "TRACEML_DIR": str(tmp_path / "runs"),
            **variables,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
