"""Merging the parts of a run: what `fold` and `view` take, and what they refuse."""

import json
import shutil

import pytest

from tests.cli.conftest import Cli
from tests.report.test_membership import life


def parts_of(tmp_path):
    """Two nodes of one run; node-b holds rank 1."""
    for rank, name in enumerate(("node-a", "node-b")):
        life(tmp_path / name, rank, 2, host=name)
    return [str(tmp_path / name) for name in ("node-a", "node-b")]


def test_fold_writes_into_the_first_part_and_view_shows_it_from_there(cli: Cli, tmp_path) -> None:
    parts = parts_of(tmp_path)
    done = cli("fold", *parts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{parts[0]}/final_summary.json"
    assert not list((tmp_path / "node-b").glob("final*"))
    shown = json.loads(cli("view", parts[0], "--json").stdout)
    assert sorted(shown["step_time"]["groups"]["rows"]) == ["0", "1"]
    assert shown["traceml_agent"]["complete"] is True


def test_view_of_parts_writes_nothing(cli: Cli, tmp_path) -> None:
    parts = parts_of(tmp_path)
    shown = json.loads(cli("view", *parts, "--json").stdout)
    assert shown["traceml_agent"]["missing_ranks"] == []
    assert not list(tmp_path.glob("node-*/final*"))


def test_output_takes_the_summary_elsewhere(cli: Cli, tmp_path) -> None:
    parts = parts_of(tmp_path)
    assert cli("fold", *parts, "--output", "merged/deep").returncode == 0
    assert (tmp_path / "merged" / "deep" / "final_summary.txt").exists()
    assert not list(tmp_path.glob("node-*/final*"))
    assert "rank" in cli("view", "merged/deep", "--json").stdout


@pytest.mark.parametrize("command", ["fold", "view"])
def test_parts_of_two_runs_are_refused_with_both_named(cli: Cli, tmp_path, command) -> None:
    parts = parts_of(tmp_path)
    life(tmp_path / "stranger", run_id="another")
    done = cli(command, *parts, str(tmp_path / "stranger"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no parts of one run" in done.stderr and "another" in done.stderr
    assert not list(tmp_path.glob("*/final*"))


@pytest.mark.parametrize("command", ["fold", "view"])
@pytest.mark.parametrize("wrong", ["nowhere", "empty", "node-a/a-file", "plain.txt"])
def test_a_part_that_is_none_is_refused(cli: Cli, tmp_path, command, wrong) -> None:
    parts = parts_of(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain.txt").write_text("x")
    done = cli(command, parts[0], str(tmp_path / wrong))
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("traceml: ") and "Traceback" not in done.stderr


def test_the_summary_never_replaces_that_of_another_run(cli: Cli, tmp_path) -> None:
    parts = parts_of(tmp_path)
    life(tmp_path / "stranger", run_id="another")
    done = cli("fold", *parts, "--output", str(tmp_path / "stranger"))
    assert done.returncode == 2
    assert "holds spools" in done.stderr


def test_the_same_directory_given_twice_counts_once(cli: Cli, tmp_path) -> None:
    parts = parts_of(tmp_path)
    shutil.copytree(parts[1], tmp_path / "again")
    done = cli("view", *parts, parts[0], str(tmp_path / "again"), "--json")
    payload = json.loads(done.stdout)
    assert len(payload["ledger"]["ranks"]) == 2
    assert payload["traceml_agent"]["problems"] == []
