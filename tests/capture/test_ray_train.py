"""The session of Ray Train, version 1: whose function ends the run of its worker."""

from types import SimpleNamespace

import pytest

from traceml_agent.capture.patches import ray_train


class Session:
    """As `ray.train._internal.session._TrainSession`, which a trial of Ray Tune has too."""

    def __init__(self, world_rank, target):
        self.world_rank = world_rank
        self.training_thread = SimpleNamespace(_target=target)

    def start(self):
        return self.training_thread._target()


def train():
    return 7


@pytest.mark.parametrize(("world_rank", "ends"), [(0, True), (1, True), (None, False)])
def test_a_trial_of_ray_tune_does_not_end_the_run_of_its_process(world_rank, ends, monkeypatch):
    patched = type("Session", (Session,), {})
    assert ray_train.install_session(SimpleNamespace(_TrainSession=patched)) == "active"
    ended = []
    monkeypatch.setattr(ray_train, "finish_early", ended.append)
    session = patched(world_rank, train)
    session.start()
    assert ended == ([None] if ends else [])
    assert session.training_thread._target() == 7


class StartTraceback(Exception):
    """As `ray.air._internal.util.StartTraceback`."""


def test_the_error_of_the_program_is_the_cause_of_what_ray_raises():
    wrapped = StartTraceback()
    wrapped.__cause__ = StartTraceback()
    wrapped.__cause__.__cause__ = error = ValueError("the fifth")
    assert ray_train._ended_by(wrapped) is error
    assert ray_train._ended_by(error) is error
    assert ray_train._ended_by(SystemExit(0)) is None
    assert isinstance(ray_train._ended_by(SystemExit(3)), SystemExit)
