"""`traceml-agent runs` and `fold`: what is listed, what is written."""

import json
from pathlib import Path

from tests.cli.conftest import Cli, MakeRun


def test_runs_are_listed_newest_first_with_status_steps_and_verdict(
    cli: Cli, make_run: MakeRun
) -> None:
    make_run("old", started_s=1_700_000_000.0)
    make_run("new", started_s=1_700_009_000.0, name="second try", steps=80, ended=False)
    done = cli("runs")
    head, first, second = (line.split() for line in done.stdout.splitlines())
    assert head[:3] == ["RUN", "NAME", "STATUS"]
    assert first[:4] == ["new", "second", "try", "killed"]
    assert first[-4:] == ["80", "1", "INPUT_BOUND", "(crit)"]
    assert second[:3] == ["old", "-", "finished"]


def test_json_carries_the_same_and_the_path(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("one", name="baseline")
    (entry,) = json.loads(cli("runs", "--json").stdout)
    assert entry["run_id"] == "one"
    assert entry["name"] == "baseline"
    assert entry["path"] == str(run_dir)
    assert (entry["status"], entry["steps"], entry["ranks"]) == ("finished", 60, 1)
    assert entry["verdict"] == "INPUT_BOUND"
    assert entry["started_wall_s"] == 1_700_000_000.0


def test_a_run_that_cannot_be_read_is_listed_as_such_and_hides_no_other(
    cli: Cli, make_run: MakeRun, runs_dir: Path
) -> None:
    make_run("good")
    (runs_dir / "bad").mkdir()
    (runs_dir / "bad" / "rank00000-attempt0-host-1.jsonl").write_bytes(b"\x00\x01")
    statuses = {e["run_id"]: e["status"] for e in json.loads(cli("runs", "--json").stdout)}
    assert statuses == {"good": "finished", "bad": "unreadable"}


def test_listing_writes_nothing(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("one")
    before = sorted(path.name for path in run_dir.iterdir())
    cli("runs")
    assert sorted(path.name for path in run_dir.iterdir()) == before


def test_other_files_and_directories_are_passed_over(cli: Cli, runs_dir: Path) -> None:
    (runs_dir / "notes.txt").write_text("x")
    (runs_dir / "empty").mkdir()
    (runs_dir / ".hidden").mkdir()
    (runs_dir / ".hidden" / "a.jsonl").touch()
    done = cli("runs")
    assert (done.returncode, done.stdout) == (0, "")
    assert str(runs_dir) in done.stderr
    assert cli("runs", "--json").stdout == "[]\n"


def test_fold_writes_the_files_and_prints_their_paths(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("one")
    done = cli("fold", "one")
    assert done.returncode == 0
    printed = [Path(line) for line in done.stdout.splitlines()]
    assert printed == [run_dir / name for name in ("final_summary.json", "final_summary.txt")]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in printed)


def test_fold_of_a_missing_run_is_refused(cli: Cli) -> None:
    done = cli("fold", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'nothing'" in done.stderr
