"""BracketedStep: steps whose bounds the program gives, between those that are found by evidence.

A bracket is one step: until it ends nothing else closes one. Its step begins where the one before
ended, so what lies between two brackets (the wait for the batch, logging) belongs to the later one,
as it does between automatic steps. docs/decisions/0015-brackets.md says why.
"""

from traceml_agent.capture.open_step import NONE, OpenStep, clock, pause_limit
from traceml_agent.guard import INTERNAL
from traceml_agent.schema.phases import INPUT_WAIT, OPTIMIZER


class BracketedStep(OpenStep):
    """The step in progress, and the bracket that it is in."""

    __slots__ = ()

    def begin_bracket(self, bracket: object) -> None:
        """A step begins here, or began when its batch was asked for. Not within an update."""
        try:
            now = clock()
            if self.updating:
                self._abort_update()
            if self.phase >= 0:
                self._split_phase(now)
            if self._is_updated_step():
                self._close_at_segment()
            elif not self._proven:
                self._skip_pause(now)
            if not self.segment.start:
                self._start_at(now)
            self._attend = self._parted = self._exhausted = False
            self.bracket = bracket
        except INTERNAL as error:
            self._fail("optimizer", error)

    def end_bracket(self, *, failed: bool) -> None:
        """The step ends here. One that `failed` is none unless parameters were updated in it."""
        try:
            self.bracket = None
            now = clock()
            if self.updating:
                self._abort_update()
            if self.phase >= 0:
                self._split_phase(now)
            moved = self.probe.version_moved()
            if failed and not self._optimizers and not moved:
                return  # as if there had been no bracket: what follows tells
            if self._exhausted and self._is_empty():
                return  # the loader had no further batch, and the loop ends
            if self._eval_seen and self._proven:
                self._settle_as_eval()
            self._prove()
            self._close_all(now)
            self.since = now
            self._attend = self._parted = self.phase == NONE
        except INTERNAL as error:
            self._fail("optimizer", error)

    def _is_updated_step(self) -> bool:
        """Whether the open step has its update, and only waits for the event that shows its end."""
        if not self._proven or self._optimizers:
            return self._proven
        done = 0 if self._done is None else self._done.backwards
        return done + self.segment.backwards > 0 and self._saw_update()

    def _is_empty(self) -> bool:
        found = self.segment
        counted = found.batches or found.forwards or found.backwards or found.updates
        return not (counted or self._batches or self._done is not None)

    # Shared with the automatic steps

    def _skip_pause(self, now: int) -> None:
        """Between two loops: before the first step, or after a pause, training starts afresh."""
        only_evaluated = self._evaluated and self.on_proof is not None
        if only_evaluated or now - self.since > pause_limit(self.last_duration):
            self._start_at(now)

    def _abort_update(self) -> None:
        """The step of an optimizer raised, and the loop went on."""
        if self.phase == OPTIMIZER:
            self.leave(NONE)
        self.updating = 0
        self._opened_update = False
        self._in_scaler = False

    def _prove(self) -> None:
        """What is provisional was training."""
        self._proven = True
        if self._batches:
            segment, roles = self.segment, self._roles
            for key, samples in self._batches:
                if segment.batches:
                    segment.count_batch(key, samples)
                else:
                    segment.loader, segment.batches, segment.samples = key, 1, samples
                roles[key] = INPUT_WAIT
            self._batches.clear()
        self._input_ns = self._h2d_ns = self._forward_ns = 0
        self._eval_seen = self._evaluated = False
        if self.on_proof is not None:
            on_proof, self.on_proof = self.on_proof, None
            on_proof()
