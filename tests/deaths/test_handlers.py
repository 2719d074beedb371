"""Handlers of fatal signals: the user's stay, and ours write into the file of their own process."""

from tests.deaths.warm import Job, let_die, view

SIGHUP = "def wait():\n    time.sleep(60)\ntrain(10)\nos.kill(os.getpid(), signal.SIGHUP)\nwait()"
IGNORED = "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup\ntrain(10)\n" + (
    "os.kill(os.getpid(), signal.SIGHUP)\ntrain(10)\nprint(signal.getsignal(signal.SIGHUP))"
)


def test_a_sighup_is_told_from_a_sigterm_and_nohup_holds(tmp_path):
    jobs = [Job("sighup", SIGHUP), Job("nohup", IGNORED)]
    off = let_die(tmp_path / "off", jobs, enabled=False)
    on = let_die(tmp_path / "on", jobs)
    for name, code in {"sighup": -1, "nohup": 0}.items():
        assert on[name].returncode == off[name].returncode == code
        assert (on[name].stdout, on[name].other_stderr) == (off[name].stdout, off[name].stderr)
        assert view(on[name].run_dir).returncode == 0
    how = on["sighup"].summary["run_context"]["exit"]["0"]
    assert (how["status"], how["exception"]) == ("terminated", "SIGHUP")
    assert how["last_step"] >= 9
    assert "train.py" in how["stack"]
    assert on["nohup"].summary["run_context"]["run"]["status"] == "finished"
    assert on["nohup"].steps == 20


REGISTERED = """
import faulthandler
faulthandler.register(signal.SIGTERM, chain=True)
train(10)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


def test_a_faulthandler_that_the_user_registered_for_sigterm_keeps_it(tmp_path):
    off = let_die(tmp_path / "off", [Job("own", REGISTERED)], enabled=False)["own"]
    on = let_die(tmp_path / "on", [Job("own", REGISTERED)])["own"]
    assert on.returncode == off.returncode == -15
    assert "Current thread" in off.stderr
    assert "Current thread" in on.stderr
    assert on.summary["run_context"]["run"]["status"] == "killed"


FORKED = """
def crash():
    ctypes.string_at(0)

train(5)
if os.fork() == 0:
    train(8)
    crash()
os.wait()
train(5)
"""


def test_the_crash_of_a_child_that_trains_is_kept_with_the_child(tmp_path):
    parent = let_die(tmp_path, [Job("parent", FORKED)])["parent"]
    assert (parent.returncode, parent.steps) == (0, 10)
    assert [path.read_bytes() for path in parent.run_dir.glob("*.stack")] == [b""]
    (child,) = [run for run in (tmp_path / "runs").iterdir() if run != parent.run_dir]
    (stack,) = child.glob("*.stack")
    assert "in crash" in stack.read_text()
    shown = view(child)
    assert shown.returncode == 0
    assert "Segmentation fault" in shown.stdout
