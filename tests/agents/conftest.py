"""Other agents, each with this one in a virtual environment of its own.

The environments are kept between sessions in `.venv-agents/`, or where TEST_VENVS says: making
them takes packages from an index. torch is not among these: they see the one that the tests run
with, behind their own packages.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.boot.conftest import REPOSITORY, installer, run

REQUIREMENTS = {
    "coverage": ("coverage==7.17.3",),
    "viztracer": ("viztracer==1.1.1",),
    "scalene": ("scalene==2.4.0",),
    "ddtrace": ("ddtrace==4.16.0",),
    "opentelemetry": (
        "opentelemetry-distro==0.66b1",
        "opentelemetry-instrumentation-sqlite3==0.66b1",
    ),
    # Not agents, but what trainings log to, and what starts them (tests/engines).
    "trackers": (
        "tensorboard==2.21.0",
        "tensorboardX==2.6.5",
        "wandb==0.31.0",
        "mlflow==3.17.2",
        "clearml==2.1.12",
        "aim==3.29.1",
    ),
    "engines": (
        "accelerate==1.15.0",
        "deepspeed==0.19.8",
        "ray==2.60.0",
        "transformers==5.23.0",
        "lightning==2.6.6",
        "pytorch-lightning==2.6.6",
        "torchmetrics==1.9.0",
        "lightning-utilities==0.15.3",
    ),
    # The same tests with TEST_ENGINES=engines-older (`make engines-older`).
    "engines-older": (
        "accelerate==1.0.1",
        "deepspeed==0.16.9",
        "ray==2.44.1",
        "transformers==4.46.3",
        "lightning==2.4.0",
        "pytorch-lightning==2.4.0",
        "torchmetrics==1.4.3",
        "lightning-utilities==0.11.9",
        "huggingface_hub==0.36.0",
        "tokenizers==0.20.3",
    ),
}
BESIDE_TORCH = {
    "engines": (
        "einops", "hjson", "msgpack", "numpy", "packaging", "psutil", "py-cpuinfo", "pydantic",
        "tqdm", "huggingface_hub", "pyyaml", "safetensors", "click", "filelock", "jsonschema",
        "protobuf", "requests", "fsspec", "pandas", "pyarrow", "tensorboardX", "typing-extensions",
        "tokenizers", "regex", "typer",
    ),
}  # fmt: skip
BESIDE_TORCH["engines-older"] = (*BESIDE_TORCH["engines"], "aiohttp")
"""Where a requirement asks for torch, all that it asks for but torch: another torch than the one
the tests run with would be installed."""
VENVS = Path(os.environ.get("TEST_VENVS", REPOSITORY / ".venv-agents"))
MADE, OURS = "made", "ours"
"""Files in an environment: what is in it, and from which sources this agent was installed."""


@pytest.fixture(scope="session")
def bin_of() -> Iterator[Callable[[str], Path]]:
    """Gives the `bin` directory of an agent's environment. Skips where it cannot be installed."""
    with contextlib.ExitStack() as locks:
        yield cache(lambda name: _locked(name, locks) / "bin")


def _locked(name: str, locks: contextlib.ExitStack) -> Path:
    """The environment, current. Others may use it at the same time, and nobody change it."""
    VENVS.mkdir(parents=True, exist_ok=True)
    venv = VENVS / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}"
    lock = locks.enter_context((VENVS / f"{venv.name}.lock").open("a+"))
    fcntl.lockf(lock, fcntl.LOCK_SH)
    if not _is_current(venv, name):
        fcntl.lockf(lock, fcntl.LOCK_UN)
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not _is_current(venv, name):
            _make(venv, name)
        fcntl.lockf(lock, fcntl.LOCK_SH)
    return venv


def _is_current(venv: Path, name: str) -> bool:
    made, ours = venv / MADE, venv / OURS
    return (
        made.is_file()
        and made.read_text() == _contents(name)
        and ours.is_file()
        and ours.read_text() == _sources_hash()
    )


def _make(venv: Path, name: str) -> None:
    """Installs what is missing: the agent of that name, and ours as it now stands."""
    made = venv / MADE
    if not made.is_file() or made.read_text() != _contents(name):
        shutil.rmtree(venv, ignore_errors=True)
        run([sys.executable, "-m", "venv", "--without-pip", str(venv)], os.environ)
        install = installer(venv / "bin/python")
        if name in BESIDE_TORCH:
            _install(name, [*install, *BESIDE_TORCH[name]])
            install.append("--no-deps")
        _install(name, [*install, *REQUIREMENTS[name]])
        site_packages = next(venv.glob("lib/python*/site-packages"))
        # Only paths: what such a line adds stands behind all that is installed here, and the
        # `.pth` files in it do not run.
        (site_packages / "running_environment.pth").write_text(f"{_home_of('torch')}\n")
        made.write_text(_contents(name))
    shutil.rmtree(venv / "wheel", ignore_errors=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run([*build, "-o", str(venv / "wheel"), "."], os.environ, cwd=REPOSITORY)
    (wheel,) = (venv / "wheel").glob("*.whl")
    ours = [*installer(venv / "bin/python"), "--no-deps", "--force-reinstall", str(wheel)]
    run(ours, os.environ)
    (venv / OURS).write_text(_sources_hash())


def _install(name: str, command: list[str]) -> None:
    done = subprocess.run(
        command,
        env=os.environ | _settings_for_uv(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        reason = f"{name} cannot be installed: {done.stderr.strip()[-300:]}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def _contents(name: str) -> str:
    return "\n".join(
        (sys.version, str(_home_of("torch")), *REQUIREMENTS[name], *BESIDE_TORCH.get(name, ()))
    )


def _home_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]


def _sources_hash() -> str:
    digest = hashlib.sha256()
    sources = [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "agent").rglob("*")]
    for path in sorted([*sources, REPOSITORY / "pyproject.toml"]):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(path).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _settings_for_uv() -> dict[str, str]:
    """pip's settings under the names that uv reads."""
    names = {
        "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
        "PIP_FIND_LINKS": "UV_FIND_LINKS",
        "PIP_CERT": "SSL_CERT_FILE",
    }
    return {theirs: os.environ[ours] for ours, theirs in names.items() if os.environ.get(ours)}
