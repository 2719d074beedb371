"""StepTracker: which phase is open, where a step ends, what a step cost.

No call marks a step. What counts as evidence:

* A *proof* of training is a backward pass or an optimizer step. Waiting, copies and forward calls
  since the last proof are provisional: a validation loop looks the same until its end.
* A step closes when, after an update, a loader is asked again that gave this step its first batch.
* Without such a request it closes when an optimizer steps that already stepped in this step: then
  it ended at the first event after its last update, which is where a new segment began.
* Without any optimizer, an update is seen by the version counter of a parameter.
* Where the program says what a step is (a bracket), that counts, and nothing of the above.

All methods are called by one thread, the one that trains; `owner` is its identifier.
"""

from traceml_agent.capture.bracketed import BracketedStep
from traceml_agent.capture.open_step import CLOSURE, NONE, clock
from traceml_agent.capture.segment import Segment
from traceml_agent.capture.updates import UNKNOWN_VERSION
from traceml_agent.guard import INTERNAL
from traceml_agent.schema.phases import BACKWARD, EVAL, FORWARD, H2D, INPUT_WAIT, OPTIMIZER


class StepTracker(BracketedStep):
    """What the patches call: events of the training loop, in the order in which they happen."""

    __slots__ = ()

    # The data loader

    def begin_fetch(self, key: int) -> None:
        """A loader is asked for its next batch: perhaps the end of a step."""
        try:
            if self.phase == OPTIMIZER:
                self._abort_update()  # its step raised, and the loop went on
            if self._eval_seen:
                self._settle_as_eval()
            now = clock()
            segment = self.segment
            if self._proven:
                first = segment if self._done is None else self._done
                if key in first.keys and self.bracket is None and self._is_updated(first):
                    self._close_all(now)
                    segment = self.segment
            elif segment.start and self.bracket is None:
                # Asked in this order: what was written before the first batch is no update.
                if key in segment.keys and self.probe.version_moved() and self._batches:
                    # Backward and optimizer run inside one compiled call: only the result shows.
                    self._prove()
                    self._close_all(now)
                else:
                    self._skip_pause(now)
            if self._attend:
                self._begin_segment(INPUT_WAIT, now)
            segment = self.segment
            if key not in segment.keys:
                segment.keys.append(key)
            self.fetch_key = key
            if self.device is not None:
                self.device.switch(NONE, INPUT_WAIT)
            self.phase = INPUT_WAIT
            self.since = now
        except INTERNAL as error:
            self._fail("dataloader", error)

    def end_fetch(self, samples: int | None) -> None:
        """The batch is there; `samples` is its size, None if that cannot be seen."""
        try:
            now = clock()
            elapsed = now - self.since
            self.segment.acc[INPUT_WAIT] += elapsed
            self._input_ns += elapsed
            if self.device is not None:
                self.device.switch(INPUT_WAIT, NONE)
            self.phase = NONE
            self.since = now
            self._batches.append((self.fetch_key, samples))
        except INTERNAL as error:
            self._fail("dataloader", error)

    def end_fetch_without_batch(self) -> None:
        """The loader is exhausted, has failed, or has only started its workers."""
        try:
            elapsed = self.leave(NONE)
            self._exhausted = True
            role = self._roles.get(self.fetch_key)
            if role == EVAL:
                self.segment.acc[INPUT_WAIT] -= elapsed
                self.segment.acc[EVAL] += elapsed
            elif role is None:
                self._input_ns += elapsed
        except INTERNAL as error:
            self._fail("dataloader", error)

    def _is_updated(self, first: Segment) -> bool:
        if self._optimizers:
            return not self._opened_update
        backwards = first.backwards or self.segment.backwards
        return backwards > 0 and self._saw_update()

    # Copies, forward and backward

    def end_transfer(self, previous: int, to_device: bool) -> None:
        """A copy between devices ended."""
        try:
            elapsed = self.leave(previous)
            if to_device:
                self._h2d_ns += elapsed
            else:
                # A copy to the host waits for the device: no phase, a named part of the residual.
                self.segment.acc[H2D] -= elapsed
                self.segment.d2h_ns += elapsed
        except INTERNAL as error:
            self._fail("transfer", error)

    def end_forward(self, previous: int, in_training_mode: bool) -> None:
        """An outermost module call with gradients ended."""
        try:
            now = clock()
            elapsed = now - self.since
            segment = self.segment
            segment.acc[FORWARD] += elapsed
            segment.forwards += 1
            self._forward_ns += elapsed
            if self.device is not None:
                self.device.switch(FORWARD, previous)
            self.phase = previous
            self.since = now
            if not in_training_mode:
                self._eval_seen = True
        except INTERNAL as error:
            self._fail("forward", error)

    def end_eval(self, previous: int) -> None:
        """An outermost module call without gradients ended."""
        try:
            self.leave(previous)
            self.segment.forwards += 1
            self._eval_seen = True
        except INTERNAL as error:
            self._fail("forward", error)

    def begin_backward(self) -> int:
        """A backward pass starts: what came before it was training."""
        try:
            is_open = self._proven and self.phase == NONE and not self._optimizers
            if is_open and self.bracket is None:
                first = self.segment if self._done is None else self._done
                # With a loader its next request decides: SAM writes to parameters in between.
                parted = (self._done is not None or self._attend) and not first.keys
                if parted and not self._batches and self._saw_update():
                    self._close_at_segment()
            now = clock()
            if self._attend:
                self._begin_segment(BACKWARD, now)
            previous = self.phase
            if previous >= 0:
                self.segment.acc[previous] += now - self.since
            if self.device is not None:
                self.device.switch(previous, BACKWARD)
            self.phase = BACKWARD
            self.since = now
            self._prove()
            return previous
        except INTERNAL as error:
            self._fail("backward", error)
            return NONE

    def end_backward(self, previous: int) -> None:
        """A backward pass ended."""
        try:
            now = clock()
            segment = self.segment
            segment.acc[BACKWARD] += now - self.since
            if self.device is not None:
                self.device.switch(BACKWARD, previous)
            self.phase = previous
            self.since = now
            if previous == NONE:
                segment.backwards += 1
                if not self._optimizers:
                    self._attend = True
            else:
                segment.in_update = True
        except INTERNAL as error:
            self._fail("backward", error)

    # Optimizers

    def begin_update(self, optimizer_id: int) -> None:
        """An optimizer starts a step."""
        try:
            self.optimizer_calls += 1
            if self.updating:
                if self._in_scaler:
                    self.updating += 1
                    return
                self._abort_update()
            self._begin_update(optimizer_id)
        except INTERNAL as error:
            self._fail("optimizer", error)

    def begin_inner_update(self) -> None:
        """An optimizer starts a step inside the step of one, perhaps its own: it is one update."""
        self.optimizer_calls += 1
        self.updating += 1

    def begin_scaler_update(self, optimizer_id: int) -> bool:
        """A GradScaler decides whether the optimizer may step; False: not an outermost call."""
        try:
            if self.phase != NONE or self.evaluating:
                return False
            self._begin_update(optimizer_id)
            self._in_scaler = True
            return True
        except INTERNAL as error:
            self._fail("optimizer", error)
            return False

    def _begin_update(self, optimizer_id: int) -> None:
        if optimizer_id in self._optimizers and self.bracket is None:
            self._close_at_segment()
        self.updating = 1
        late = self._parted  # of the bracket that has ended: no step of its own
        # An optimizer may step inside backward (one per parameter, as a gradient hook): then the
        # time is backward's, and only the update counts.
        if self.phase == NONE:
            self._opened_update = True
            self.enter(OPTIMIZER)
        else:
            self._opened_update = False
            if not self.segment.start:  # inside what alone starts no step
                self._start_at(self.since)
        if late:
            return
        self._optimizers.append(optimizer_id)
        if not self._proven or self._batches or self._eval_seen:
            self._prove()

    def end_update(self) -> None:
        """The step of an optimizer ended."""
        try:
            if self.updating != 1:
                # Inside another one; or its beginning was not seen, or is forgotten after an error.
                self.updating = max(0, self.updating - 1)
                return
            self.updating = 0
            segment = self.segment
            if self._opened_update:
                self._opened_update = False
                if self.phase == OPTIMIZER:
                    now = clock()
                    segment.acc[OPTIMIZER] += now - self.since
                    if self.device is not None:
                        self.device.switch(OPTIMIZER, NONE)
                    self.phase = NONE
                    self.since = now
            segment.updates += 1
            self._attend = True
            self.probe.version = UNKNOWN_VERSION
        except INTERNAL as error:
            self._fail("optimizer", error)

    def begin_closure(self) -> bool:
        """The open update calls its closure: what happens there is not the optimizer's; False: it
        belongs to another phase.
        """
        try:
            if self.phase != OPTIMIZER:
                return False
            now = clock()
            self.segment.acc[OPTIMIZER] += now - self.since
            if self.device is not None:
                self.device.switch(OPTIMIZER, NONE)
            self.phase = CLOSURE
            self.since = now
            return True
        except INTERNAL as error:
            self._fail("optimizer", error)
            return False

    def end_closure(self) -> None:
        """The closure is done: the optimizer goes on."""
        try:
            if self.phase == CLOSURE:
                if self.device is not None:
                    self.device.switch(NONE, OPTIMIZER)
                self.phase = OPTIMIZER
                self.since = clock()
        except INTERNAL as error:
            self._fail("optimizer", error)

    def end_scaler_update(self, updated: bool) -> None:
        """The GradScaler is done; not `updated`: a gradient was infinite and the step skipped."""
        try:
            if not self._in_scaler:
                return  # forgotten after an error
            self._in_scaler = False
            self.updating = 1
            self.end_update()
            if not updated:
                self.segment.updates -= 1
        except INTERNAL as error:
            self._fail("optimizer", error)

    # The end

    def end_training(self) -> None:
        """A framework's training loop ended, and its last step with it; another may follow."""
        try:
            self.finish()
            self._forget_step()
        except INTERNAL as error:
            self._fail("optimizer", error)

    def finish(self) -> None:
        """The program ends: closes a step whose update is done; the rest stays outside steps."""
        if self.updating:  # its step, or the closure of it, raised: no update
            self._abort_update()
            del self._optimizers[-1:]
        if self.phase >= 0:
            self.leave(NONE)
        if self._eval_seen:
            self._settle_as_eval()
        updated = self._optimizers or self._saw_update()
        if self._proven and updated:
            if self._done is not None and not self._attend:
                self._close(self._done, self._done_end)
            else:
                self._close_all(self.since)
        self._start_at(0)
        self._attend = True
