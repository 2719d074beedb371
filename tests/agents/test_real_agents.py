"""The same training under five other agents, with this one off and on."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import TIMEOUT_S, Result, environment, runs_in
from tests.report.synthetic_run import ACTIVE

pytestmark = pytest.mark.slow

TRAINING = Path(__file__).with_name("training.py")
BACKWARD_LINE = TRAINING.read_text().splitlines().index("            loss.backward()") + 1
BATCHES = 15
FROM_A_PARENT = (
    "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))\n"
)


@dataclass(frozen=True, slots=True)
class Launch:
    """How a person starts the training under an agent, and what that agent must have seen of it."""

    agent: str
    command: str  # less the arguments of the training
    saw_training: Callable[[Path, Result, Path], None]
    exit_code: int
    loaders: str = "0 2"  # worker counts, one loop each
    busy_s: int = 0  # for what samples or sends at intervals
    traces: bool = True
    variables: dict[str, str] = field(default_factory=dict)


def coverage_has_the_lines(bin_dir: Path, result: Result, directory: Path) -> None:
    coverage = str(bin_dir / "coverage")
    if not (directory / ".coverage").exists():
        subprocess.run([coverage, "combine", "-q"], cwd=directory, check=True, timeout=60)
    report = [coverage, "json", "-q", "--include", "training.py", "-o", "lines.json"]
    subprocess.run(report, cwd=directory, check=True, timeout=60)
    files = json.loads((directory / "lines.json").read_text())["files"]
    assert BACKWARD_LINE in files["training.py"]["executed_lines"]


def viztracer_has_the_calls(bin_dir: Path, result: Result, directory: Path) -> None:
    events = json.loads((directory / "result.json").read_text())["traceEvents"]
    assert any("training.py" in event.get("name", "") for event in events)


def scalene_has_a_profile(bin_dir: Path, result: Result, directory: Path) -> None:
    profile = json.loads((directory / "scalene-profile.json").read_text())
    assert any(name.endswith("training.py") for name in profile["files"])


def ddtrace_sent_the_queries(bin_dir: Path, result: Result, directory: Path) -> None:
    assert "database ddtrace." in result.stdout
    assert any("/traces" in path and b"sqlite.query" in body for path, body in RECEIVED), RECEIVED


def opentelemetry_printed_the_queries(bin_dir: Path, result: Result, directory: Path) -> None:
    assert "database opentelemetry." in result.stdout
    assert len(SPAN.findall(result.stdout)) == 2


SPAN = re.compile(r'^\{\n    "name": "select",\n.*?^\}\n', re.MULTILINE | re.DOTALL)
RECEIVED: list[tuple[str, bytes]] = []
"""What ddtrace sent: path and body."""

# It sends every second and gives up a sending after two: on a busy machine nothing may arrive.
DDTRACE = {
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_TRACE_AGENT_TIMEOUT_SECONDS": "60",
}
NO_EXPORT = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
LAUNCHES = {
    "coverage run": Launch(
        "coverage", "coverage run training.py", coverage_has_the_lines, exit_code=3
    ),
    "coverage of subprocesses": Launch(
        "coverage", "coverage run parent.py training.py", coverage_has_the_lines, exit_code=0,
        variables={"COVERAGE_RCFILE": "subprocess.ini"},
    ),
    "viztracer": Launch(
        "viztracer",
        "viztracer --quiet --tracer_entries 200000 -- training.py",
        viztracer_has_the_calls,
        exit_code=3,
    ),
    "python -m viztracer": Launch(
        "viztracer",
        "python -m viztracer --quiet --tracer_entries 200000 training.py",
        viztracer_has_the_calls,
        exit_code=0,
    ),
    # Its use of torch.profiler aborts the workers of a loader, without this agent too.
    "scalene": Launch(
        "scalene", "scalene run --cpu-only --cpu-sampling-rate 0.1 training.py ---",
        scalene_has_a_profile, exit_code=3, loaders="0", busy_s=1,
    ),
    "python -m scalene": Launch(
        "scalene", "python -m scalene run --cpu-only --cpu-sampling-rate 0.1 training.py ---",
        scalene_has_a_profile, exit_code=0, loaders="0", busy_s=1,
    ),
    "ddtrace-run": Launch(
        "ddtrace", "ddtrace-run python training.py", ddtrace_sent_the_queries, exit_code=3,
        traces=False, busy_s=2, variables=DDTRACE,
    ),
    "opentelemetry-instrument": Launch(
        "opentelemetry", "opentelemetry-instrument python training.py",
        opentelemetry_printed_the_queries, exit_code=0, traces=False,
        variables={"OTEL_TRACES_EXPORTER": "console", **NO_EXPORT},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def intake() -> Iterator[str]:
    """A server that takes what ddtrace sends; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            RECEIVED.append((self.path, self.rfile.read(length)))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_PUT

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_training_under_another_agent_is_recorded_and_changes_for_neither(
    name: str, tmp_path: Path, bin_of: Callable[[str], Path], intake: str
) -> None:
    launch = LAUNCHES[name]
    bin_dir = bin_of(launch.agent)
    outcomes = {}
    for enabled in (False, True):
        RECEIVED.clear()
        directory = tmp_path / ("on" if enabled else "off")
        result = start(launch, bin_dir, directory, enabled, intake)
        if launch.agent == "scalene" and broke_an_import(result):
            directory = tmp_path / f"{directory.name} again"
            result = start(launch, bin_dir, directory, enabled, intake)
        assert result.returncode == launch.exit_code, result.stderr
        launch.saw_training(bin_dir, result, directory)
        outcomes[enabled] = SPAN.sub("", result.stdout)
    assert outcomes[True] == outcomes[False]
    assert outcomes[True].count("loss ") == steps_of(launch)
    assert "Traceback" not in result.stderr
    assert_recorded(launch, result)


def assert_recorded(launch: Launch, result: Result) -> None:
    """One process, every step, every patch, one summary, and the name of the other agent."""
    (spool,) = result.spools
    assert spool.end is not None
    assert spool.end.steps == steps_of(launch)
    # Who runs the script and then ends by SystemExit hides that the script came to its end.
    assert spool.end.exit_code in ((launch.exit_code,) if launch.exit_code else (0, None))
    assert spool.header.script is not None and Path(spool.header.script).name == "training.py"
    about = result.summary["traceml_agent"]
    assert {name: about["patches"][name] for name in ACTIVE} == ACTIVE
    assert (about["faults"], about["problems"], about["complete"]) == ([], [], True)
    assert len([line for line in result.own_lines if line.startswith("traceml: Run  ")]) == 1
    provenance = result.summary["provenance"]
    assert provenance["other_agents"] == [launch.agent]
    assert provenance["tracers"] == ([launch.agent] if launch.traces else [])
    note = f"a tracer was active ({launch.agent}): times include its cost"
    assert (note in result.summary["text"]) == launch.traces


def steps_of(launch: Launch) -> int:
    return BATCHES * len(launch.loaders.split())


def broke_an_import(result: Result) -> bool:
    """Its signal handlers import while the program imports, which CPython 3.11 may not survive,
    with this agent or without: https://github.com/python/cpython/issues/91351."""
    return "KeyError: " in result.stderr and "frozen importlib._bootstrap" in result.stderr


def start(launch: Launch, bin_dir: Path, directory: Path, enabled: bool, intake: str) -> Result:
    """Runs the training in its own directory, as its user would."""
    directory.mkdir()
    shutil.copy(TRAINING, directory)
    (directory / "parent.py").write_text(FROM_A_PARENT)
    (directory / "subprocess.ini").write_text("[run]\npatch = subprocess\n")
    # Loaders put sockets into TMPDIR, and the paths of sockets have a limit.
    extra = {**launch.variables, "DD_TRACE_AGENT_URL": intake, "TMPDIR": "/tmp"}
    variables = environment(directory, enabled, **extra)
    variables["PATH"] = f"{bin_dir}:{variables['PATH']}"
    program, *arguments = launch.command.split()
    numbers = (launch.exit_code, BATCHES, launch.busy_s)
    done = subprocess.run(
        [str(bin_dir / program), *arguments, *map(str, numbers), *launch.loaders.split()],
        env=variables,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, runs_in(directory))
