"""No secret of a training reaches a file of its run, or what the commands print about it."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Result, environment, run, write

Recorded = Callable[[str], tuple[Path, Result]]
CANARY = "c4n4ry"
"""Part of every secret here; what is found names the place by the letters after it."""


def canary(place: str) -> str:
    """A secret that does not look like one."""
    return f"{CANARY}{place}"


ARGUMENTS = [
    "--api-key",
    f"sk-{canary('option')}0123456789",
    f"--token={canary('equals')}",
    "-p",
    canary("short"),
    f"hf_{canary('word')}{'Ab3' * 10}",
    f"https://u:{canary('argurl')}@host/data",
    f"trainer.password={canary('hydra')}",
    "--lr",
    "0.125",
]
VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": canary("aws") + "/+0123456789",
    "WANDB_API_KEY": canary("wandb"),
    "PGPASSWORD": canary("pg"),
    "POPPED_TOKEN": canary("popped"),
    "DATABASE_URL": f"postgres://u:{canary('dburl')}@host/db",
    "HTTPS_PROXY": f"http://u:{canary('proxy')}@proxy:3128",
    "MY_SETTING": canary("anything"),
    "GIT_CONFIG_PARAMETERS": f"'url.https://{canary('git')}@host/.insteadOf=x'",
    # Settings of the agent itself.
    "TRACEML_RUN_NAME": f"train.py --api-key {canary('name')} https://u:{canary('nameurl')}@host",
    "TRACEML_RUN_ID": f"https://u:{canary('runid')}@host/../../x",
    "TRACEML_SAMPLE_INTERVAL_S": f"token={canary('number')}",
    "TRACEML_SKIP": f"token={canary('skip')} x",
    "TRACEML_NO_SUCH_SETTING": canary("stranger"),
}
TRAINING = f"""
import os, signal, sys, time
import torch
from torch import nn

torch.set_num_threads(1)
popped = os.environ.pop("POPPED_TOKEN")
local = "{canary("local")}"

def save(model, path, token="{canary("default")}"):
    torch.save(model.state_dict(), path)

def train():
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).mean().backward()
        optimizer.step()
    save(model, "model.pt", token="{canary("checkpoint")}")

def fail():
    said = (
        "401 for https://u:{canary("msgurl")}@host/r.git?token={canary("query")}, "
        "headers {{'Authorization': 'Bearer {canary("header")}0'}}, "
        f"with {{os.environ['AWS_SECRET_ACCESS_KEY']}} and {{popped}} and {{sys.argv[2]}} "
        f"and {{sys.argv[5]}} and {{sys.argv[6]}} from {{os.environ['DATABASE_URL']}} "
        "password is {canary("is")}1"
    )
    error = ConnectionError(said)
    getattr(error, "add_note", print)("{canary("note")}")
    error.detail = "{canary("attribute")}"
    try:
        raise KeyError("{canary("cause")}")
    except KeyError as cause:
        raise error from cause  # {canary("source")}

train()
"""
KILL = "os.kill(os.getpid(), signal.{}); time.sleep(60)"
ENDINGS = {
    "return": "",
    "exception": "fail()",
    "exit_message": f"sys.exit('bad token {canary('exit')}')",
    "syntax_error": f"exec('key = = \"{canary('syntax')}\"')",
    "sigterm": KILL.format("SIGTERM"),
    "sigkill": KILL.format("SIGKILL"),
    "abort": "os.abort()",
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Result]]:
    """Trains once with secrets in all places, ends as said; the directory and what was left."""

    @functools.cache
    def record(ending: str) -> tuple[Path, Result]:
        directory = tmp_path_factory.mktemp(ending)
        script = write(directory, TRAINING + ENDINGS[ending] + "\n")
        return directory, run(directory, script, *ARGUMENTS, **VARIABLES)

    return record


def found_in(data: bytes) -> list[str]:
    """The canaries in some bytes, with a little of what stands around them."""
    parts = data.split(CANARY.encode())
    return [repr(part[:40]) for part in parts[1:]]


def files_below(directory: Path) -> Iterator[Path]:
    yield from (path for path in sorted(directory.rglob("*")) if path.is_file())


def printed(tmp_path: Path, *command: str) -> str:
    """What a command of the agent prints, on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "traceml_agent", *command],
        env=environment(tmp_path, True, **VARIABLES),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_file_of_a_run_and_no_command_shows_a_secret(recorded: Recorded, ending: str) -> None:
    tmp_path, result = recorded(ending)
    run_dir = result.run_dir
    # Before and after the fold that `view` makes of a run that could not fold itself.
    before = {path.name: found_in(path.read_bytes()) for path in files_below(run_dir)}
    shown = [printed(tmp_path, "view", str(run_dir)), printed(tmp_path, "view", "--json")]
    shown.append(printed(tmp_path, "runs"))
    after = {path.name: found_in(path.read_bytes()) for path in files_below(tmp_path / "runs")}
    assert any(name.endswith(".jsonl") for name in before)
    assert "final_summary.json" in after
    assert {name: found for name, found in (before | after).items() if found} == {}
    assert [found_in(text.encode()) for text in shown] == [[], [], []]
    assert all(run_dir.name in text for text in shown[1:])
    assert found_in("\n".join(result.own_lines).encode()) == []
    assert [path for path in files_below(tmp_path) if CANARY in str(path)] == []


def test_what_is_no_secret_in_the_error_of_a_training_is_kept(recorded: Recorded) -> None:
    _, result = recorded("exception")
    exit_ = result.summary["run_context"]["exit"]["0"]
    assert exit_["exception"].startswith("ConnectionError: 401 for https://[redacted]@host/r.git")
    assert [line.rpartition(" ")[2] for line in exit_["stack"].splitlines()] == ["<module>", "fail"]
    assert "train.py" in exit_["stack"]
    assert result.summary["meta"]["run_name"].startswith("train.py --api-key [redacted] https://")


@pytest.mark.parametrize("ending", ["sigterm", "abort"])
def test_the_endings_by_a_signal_leave_a_stack(recorded: Recorded, ending: str) -> None:
    """Else the files with stacks would be empty, and the search in them would say nothing."""
    _, result = recorded(ending)
    stacks = [path for path in files_below(result.run_dir) if path.suffix == ".stack"]
    assert [b"train.py" in path.read_bytes() for path in stacks] == [True]


def test_an_error_inside_the_agent_is_written_down_without_secrets(tmp_path: Path) -> None:
    """The agent looks at objects of the program, whose errors may say anything."""
    script = write(
        tmp_path,
        "import torch\n"
        "from traceml_agent.guard import guard\n"
        f"secret = 'token={canary('fault')}'\n"
        "with guard('a look'):\n"
        f"    raise ValueError(secret)  # {canary('comment')}\n" + TRAINING,
    )
    result = run(tmp_path, script, *ARGUMENTS, **VARIABLES)
    (fault,) = result.spools[0].faults
    assert fault.error == "ValueError: token=[redacted]"
    assert fault.traceback is not None and script in fault.traceback
    assert [found_in(path.read_bytes()) for path in files_below(result.run_dir)] == [
        [] for _ in files_below(result.run_dir)
    ]


def test_doctor_repeats_a_command_without_its_secrets(tmp_path: Path) -> None:
    name = f"WANDB_API_KEY={canary('assignment')}"
    for extra in ([], ["env", name]):
        text = printed(tmp_path, "doctor", "--", *extra, sys.executable, "-E", "t.py", *ARGUMENTS)
        assert "TRACEML_ENABLE=force" in text
        assert found_in(text.encode()) == []
        assert "--lr 0.125" in text


def test_a_script_whose_name_is_no_utf_8_is_recorded(tmp_path: Path) -> None:
    script = os.fsdecode(os.fsencode(tmp_path) + b"/train\xff.py")
    Path(script).write_text(TRAINING + "raise ValueError('\\udcff')\n")
    result = run(tmp_path, script, **VARIABLES)
    spool = result.spools[0]
    assert spool.header.script == f"{tmp_path}/train?.py"
    assert spool.end is not None
    assert spool.end.exception == "ValueError:"
