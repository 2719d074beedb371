"""The ready files for clusters do what their first lines say."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.boot.conftest import REPOSITORY, Venv, lay_over

AGENT = REPOSITORY / "agent"


def test_the_kubernetes_files_lay_the_agent_over_an_image_without_it(
    make_venv: Callable[..., Venv], wheel: Path, tmp_path: Path
) -> None:
    image = make_venv()
    volume = tmp_path / "traceml"
    lay_over(image, wheel, volume)
    done = image.run(
        "-c",
        "import sys; print('traceml_agent.startup' in sys.modules)",
        TRACEML_ENABLE="1",
        PYTHONPATH=str(volume / "current" / "_traceml_overlay"),
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_shell_files_can_be_parsed() -> None:
    for script in [*AGENT.rglob("*.sh"), *AGENT.rglob("*.sbatch"), REPOSITORY / ".ci" / "run"]:
        subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)


def test_ready_files_say_whether_they_were_tried() -> None:
    ready = [p for d in ("docker", "slurm", "kubernetes", "ray") for p in (AGENT / d).iterdir()]
    assert len(ready) >= 5
    for path in ready:
        head = path.read_text(encoding="utf-8")[:1200]
        assert any(w in head for w in ("ntried", "tests/boot", "tests/slurm", "tests/engines")), (
            path
        )
