"""`traceml-agent explain`: a finding in full, and the steps it rests on."""

import json

from tests.report.synthetic_run import run_of, steps

SLOW_STEPS = {40: 46.0, 80: 66.0}


def waiting_run(runs_dir, name="waits"):
    """A run that waits 6 ms a step, and much longer twice."""
    waits = [SLOW_STEPS.get(step, 6.0 + step % 3) for step in range(1, 101)]
    batch = steps(100, input_wait=waits, durations=[10.0 + wait for wait in waits])
    run_of(runs_dir / name, batch)


def test_without_a_finding_it_lists_all_and_explains_the_one_behind_the_verdict(cli, runs_dir):
    waiting_run(runs_dir)
    shown = cli("explain", "waits").stdout
    assert shown.splitlines()[0].split() == ["FINDING", "SEVERITY", "COSTS", "OF", "STEPS"]
    assert "INPUT_BOUND  INPUT-BOUND (crit)" in shown
    assert "Gain" in shown


def test_it_shows_the_distribution_and_the_steps_with_most_of_it(cli, runs_dir):
    waiting_run(runs_dir)
    done = cli("explain", "waits", "INPUT_BOUND", "--json")
    steps_behind = json.loads(done.stdout)["steps"]
    assert sum(part["steps"] for part in steps_behind["histogram"]) == steps_behind["steps"] == 100
    slowest = [(step["step"], step["ms"]) for step in steps_behind["slowest"]]
    assert slowest[:2] == [(80, 66.0), (40, 46.0)]
    assert slowest[0][1] == steps_behind["quantiles_ms"]["max"]


def test_every_line_fits_a_terminal(cli, runs_dir):
    waiting_run(runs_dir)
    lines = cli("explain", "waits").stdout.splitlines()
    assert max(map(len, lines)) <= 90


def test_a_finding_may_be_named_in_lower_case_and_as_it_is_shown(cli, runs_dir):
    waiting_run(runs_dir)
    for name in ("input_bound", "INPUT-BOUND", "input bound"):
        assert cli("explain", "waits", name).returncode == 0, name


def test_an_unknown_finding_is_refused_with_the_names_of_those_there_are(cli, runs_dir):
    waiting_run(runs_dir)
    done = cli("explain", "waits", "GC")
    assert (done.returncode, done.stdout) == (2, "")
    assert "it has: INPUT_BOUND" in done.stderr


def test_a_run_in_order_says_so(cli, runs_dir):
    run_of(runs_dir / "calm", steps(100))
    done = cli("explain", "calm")
    assert done.returncode == 0
    assert done.stdout.startswith("No finding: ")


def test_a_summary_file_is_explained_without_its_steps(cli, runs_dir):
    waiting_run(runs_dir)
    cli("fold", "waits")
    done = cli("explain", str(runs_dir / "waits" / "final_summary.json"))
    assert "Gain" in done.stdout
    assert "The steps with most of it" not in done.stdout


def test_a_summary_of_an_older_version_is_refused_with_the_way_out(cli, runs_dir):
    waiting_run(runs_dir)
    cli("fold", "waits")
    path = runs_dir / "waits" / "final_summary.json"
    payload = json.loads(path.read_text())
    for finding in payload["findings"]:
        del finding["id"]
    path.write_text(json.dumps(payload))
    done = cli("explain", str(path))
    assert done.returncode == 2
    assert "fold RUN" in done.stderr
