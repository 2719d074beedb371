"""SIGKILL at random moments: no closed step is lost, and none is invented."""

import random

import pytest

from tests.deaths.warm import Job, let_die, view

KILLS = 52
"""Over the loops together. The goal is 50."""
AT_THE_START = 16
LATEST_S = 1.0
"""Long enough for two flushes and a sample."""
ENDLESS = """
class Endless:
    def __len__(self):
        return 10**9
    def __getitem__(self, index):
        return torch.ones(8)

"""
LOOPS = {
    "without a loader": ("train(10**9)", 0, {}),
    "with a loader": (ENDLESS + "train(0, DataLoader(Endless(), batch_size=2))", 1, {}),
    "drained often": ("train(10**9)", 0, {"TRACEML_FLUSH_INTERVAL_S": "0.05"}),
    # Events fill the spool faster than steps do, up to its cap: it is written anew at each flush.
    "thinned": (
        "import io\nwhile True:\n    train(5)\n    for _ in range(20):\n"
        "        torch.save(1, io.BytesIO())",
        100,
        {"TRACEML_SPOOL_MAX_MB": "0.1", "TRACEML_FLUSH_INTERVAL_S": "0.05"},
    ),
}


def moments(number, latest_s):
    """Random delays; the seed is printed, and pytest shows it with a failure."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    return [source.uniform(0.0, latest_s) for _ in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_a_sigkill_at_a_random_moment_loses_no_closed_step(tmp_path, loop):
    source, steps, settings = LOOPS[loop]
    jobs = [
        Job(f"{number:02}", source, (("SIGKILL", delay, steps),))
        for number, delay in enumerate(moments(KILLS // len(LOOPS), LATEST_S))
    ]
    thinned = 0
    for name, death in let_die(tmp_path, jobs, **settings).items():
        assert (death.returncode, death.overdue) == (-9, False), (name, death)
        assert death.closed_steps <= death.steps <= death.closed_steps + 1, (name, death)
        summary = death.summary
        assert summary["run_context"]["run"]["status"] == "killed"
        assert summary["run_context"]["exit"]["0"]["last_step"] == death.steps
        thinned += any('"kind":"step_sums"' in line for line in death.spool_lines)
    assert bool(thinned) == (loop == "thinned")


@pytest.mark.slow
def test_a_sigkill_while_recording_begins_leaves_what_can_be_viewed_or_nothing(tmp_path):
    jobs = [
        Job(f"{number:02}", "train(10**9)", (("SIGKILL", delay, -1),))
        for number, delay in enumerate(moments(AT_THE_START, 0.3))
    ]
    for name, death in let_die(tmp_path, jobs).items():
        assert death.returncode == -9
        if death.closed_steps > 0:
            assert death.closed_steps <= death.steps <= death.closed_steps + 1, (name, death)
        elif death.run_dir is not None and death.spool_lines:
            assert death.summary["run_context"]["run"]["status"] == "killed"


def test_view_names_the_kill_and_the_last_step(tmp_path):
    job = Job("killed", "train(40)\nos.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(9)")
    death = let_die(tmp_path, [job])["killed"]
    shown = view(death.run_dir)
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    assert "Run: killed: " in text
    assert "SIGKILL" in text
    assert "(last step 39)" in text
