"""`traceml-agent view`: which run it shows, and what it says where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MakeRun


def shown_run(stdout: str) -> str:
    """The run id in the JSON that `view --json` prints."""
    return str(json.loads(stdout)["traceml_agent"]["run_id"])


def test_without_an_argument_it_shows_the_run_that_started_last(
    cli: Cli, make_run: MakeRun
) -> None:
    make_run("later", started_s=1_700_000_900.0)
    make_run("earlier", started_s=1_700_000_100.0)
    assert shown_run(cli("view", "--json").stdout) == "later"
    assert shown_run(cli("view", "latest", "--json").stdout) == "later"


def test_a_summary_of_an_earlier_version_is_shown_without_what_it_lacks(
    cli: Cli, make_run: MakeRun
) -> None:
    run_dir = make_run("old")
    cli("fold", "old")
    file = run_dir / "final_summary.json"
    payload = json.loads(file.read_text())
    del payload["step_time"]["global"]["average"]["logging_ms"]
    payload["primary_diagnosis"].pop("finding", None)
    for finding in payload["findings"]:
        finding.pop("id", None)
    file.write_text(json.dumps(payload))
    for spool in (*run_dir.glob("*.jsonl"), *run_dir.glob("*.digest")):
        spool.unlink()
    done = cli("view", "old")
    assert done.returncode == 0, done.stderr
    assert "forward" in done.stdout


def test_a_run_is_found_by_id_prefix_path_name_and_file(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("20260101-120000-77", name="baseline of monday")
    make_run("20260202-120000-78", started_s=1_700_000_900.0)
    cli("fold", "20260101-120000-77")
    for wanted in (
        "20260101-120000-77",
        "202601",
        str(run_dir),
        "baseline of monday",
        str(run_dir / "final_summary.json"),
    ):
        done = cli("view", wanted, "--json")
        assert shown_run(done.stdout) == "20260101-120000-77", (wanted, done.stderr)


def test_an_exact_id_wins_over_a_longer_one(cli: Cli, make_run: MakeRun) -> None:
    make_run("job-1")
    make_run("job-12")
    assert shown_run(cli("view", "job-1", "--json").stdout) == "job-1"


def test_the_beginning_of_two_ids_is_refused_with_both_names(cli: Cli, make_run: MakeRun) -> None:
    make_run("job-1")
    make_run("job-2")
    done = cli("view", "job")
    assert (done.returncode, done.stdout) == (2, "")
    assert "job-1" in done.stderr
    assert "job-2" in done.stderr


def test_the_text_is_short_and_names_the_verdict(cli: Cli, make_run: MakeRun) -> None:
    make_run("slow")
    done = cli("view")
    assert done.returncode == 0
    assert done.stdout.startswith("INPUT-BOUND (critical)\n")
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_a_run_that_nobody_folded_is_folded_on_the_spot(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("killed", ended=False)
    done = cli("view", "killed", "--json")
    assert json.loads(done.stdout)["run_context"]["run"]["status"] == "killed"
    assert (run_dir / "final_summary.json").exists()
    assert (run_dir / "final_summary.txt").exists()


def test_records_written_after_the_fold_are_folded_in(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("grown", steps=30)
    cli("fold", "grown")
    make_run("grown", steps=50)
    spool = next(run_dir.glob("*.jsonl"))
    os.utime(spool)
    payload = json.loads(cli("view", "grown", "--json").stdout)
    assert payload["step_time"]["metadata"]["training_total_steps"] == 50


def test_a_torn_last_line_does_not_hide_a_run(cli: Cli, make_run: MakeRun) -> None:
    make_run("torn", ended=False, extra=b'{"kind": "steps", "first_st')
    done = cli("view", "torn", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["step_time"]["metadata"]["training_total_steps"] == 60


def test_a_written_summary_is_enough_without_its_spools(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("archived")
    cli("fold", "archived")
    next(run_dir.glob("*.jsonl")).unlink()
    assert shown_run(cli("view", "archived", "--json").stdout) == "archived"


def test_ascii_output_where_stdout_is_no_utf8(cli: Cli, make_run: MakeRun) -> None:
    make_run("plain")
    done = cli("view", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"not a spool\n", "spool"),
        (b'{"kind": "header", "schema": "traceml-spool/99"}\n', None),
    ],
)
def test_an_empty_or_foreign_spool_is_refused_with_a_message(
    cli: Cli, runs_dir: Path, content: bytes, said: str | None
) -> None:
    (runs_dir / "odd").mkdir()
    (runs_dir / "odd" / "rank00000-attempt0-host-1.jsonl").write_bytes(content)
    done = cli("view", "odd")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("traceml: ")
    assert "Traceback" not in done.stderr
    assert said is None or said in done.stderr or "odd" in done.stderr


def test_a_spool_of_a_newer_schema_asks_for_an_update(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("newer")
    spool = next(run_dir.glob("*.jsonl"))
    spool.write_bytes(spool.read_bytes().replace(b"traceml-spool/1", b"traceml-spool/99"))
    done = cli("view", "newer")
    assert (done.returncode, done.stdout) == (2, "")
    assert "update traceml-agent" in done.stderr


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"schema_version": 1}', "\x00\xff"])
def test_a_file_that_is_no_summary_is_refused(cli: Cli, tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    done = cli("view", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("traceml: ")
    assert "other.json" in done.stderr


def test_a_missing_run_and_an_empty_directory_say_what_to_do(
    cli: Cli, runs_dir: Path, tmp_path: Path
) -> None:
    nothing = cli("view")
    assert (nothing.returncode, str(runs_dir) in nothing.stderr) == (2, True)
    assert "TRACEML_ENABLE=1" in nothing.stderr
    missing = cli("view", "no-such-run")
    assert (missing.returncode, "'no-such-run'" in missing.stderr) == (2, True)
    (tmp_path / "empty").mkdir()
    empty = cli("view", str(tmp_path / "empty"))
    assert (empty.returncode, "no spool files" in empty.stderr) == (2, True)


def test_a_directory_of_runs_is_refused_with_the_names_in_it(
    cli: Cli, make_run: MakeRun, runs_dir: Path
) -> None:
    make_run("one")
    done = cli("view", str(runs_dir))
    assert (done.returncode, "one" in done.stderr) == (2, True)


def test_a_reader_that_leaves_early_is_no_error(cli: Cli, make_run: MakeRun) -> None:
    run_dir = make_run("piped")
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m traceml_agent view '{run_dir}' --json | head -c 1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("{", "")
