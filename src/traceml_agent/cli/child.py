"""Runs a command as if it had been started directly: signals, descriptors, exit status.

The child stays in our process group, so what a terminal sends reaches it without our help. What
is sent to us alone is passed on. The two cases must be told apart: a training that catches SIGINT
to save its state would be interrupted a second time in the middle of the saving.
"""

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""USR1 and USR2 too: by default they would end us and leave the training without a parent."""

NOT_FOUND = 127
NOT_EXECUTABLE = 126
_SI_KERNEL = 0x80  # siginfo.h: sent by the kernel, which for these signals means the terminal
_CANARY_WAIT_S = 0.05
"""Chosen: a signal to a group is queued for all members in one call; this is for the scheduler."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended: its exit code, or the number of the signal that ended it."""

    pid: int
    exit_code: int | None
    signal_number: int | None


class Child:
    """A command that was started; `wait` passes signals on until it has ended."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Starts it. Raises OSError as `exec` would."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
        self._canary = _Canary()
        started = False
        try:
            self.pid = os.posix_spawnp(
                command[0],
                list(command),
                dict(environ),
                setsigmask=self._mask,
                # Python ignores these two in itself; a child would inherit that.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
            started = True
        finally:
            if not started:
                self._canary.close()
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def wait(self) -> Outcome:
        """Passes signals on until the child has ended; then signals act on us as before."""
        try:
            while True:
                # The timeout is for a SIGCHLD that another parent's handler has merged away.
                info = signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, 1.0)
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    break
                if info is not None and info.si_signo != signal.SIGCHLD:
                    self._pass_on(info)
        finally:
            self._canary.close()
            # What came for a child that has ended has no addressee any more.
            while signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if os.WIFSIGNALED(status):
            return Outcome(self.pid, None, os.WTERMSIG(status))
        return Outcome(self.pid, os.WEXITSTATUS(status), None)

    def _pass_on(self, info: "signal.struct_siginfo") -> None:
        with contextlib.suppress(ProcessLookupError):
            same_group = os.getpgid(self.pid) == os.getpgrp()
            from_terminal = info.si_code == _SI_KERNEL
            if same_group and (from_terminal or self._canary.has_seen(info.si_signo)):
                return
            os.kill(self.pid, info.si_signo)


class _Canary:
    """A process of our group that tells which signals went to the whole group, and not to us alone.

    `timeout`, Slurm's step daemon and `kill -- -GROUP` do that; the training has the signal then.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _tell_signals(writer)
        os.close(writer)

    def has_seen(self, signal_number: int) -> bool:
        deadline = time.monotonic() + _CANARY_WAIT_S
        while (left_s := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._reader], [], [], left_s)
            if not ready:
                return False
            seen = os.read(self._reader, 1)
            if not seen:
                return False
            if seen[0] == signal_number:
                return True
        return False

    def close(self) -> None:
        os.close(self._reader)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _tell_signals(writer: int) -> None:
    """The life of the canary: one byte a signal, until its parent has gone. Does not return."""
    parent = os.getppid()
    try:
        # Nobody who waits for the end of our output shall wait for the canary.
        os.closerange(0, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        while os.getppid() == parent:
            info = signal.sigtimedwait(FORWARDED, 1.0)
            if info is not None:
                os.write(writer, bytes([info.si_signo]))
    finally:
        os._exit(0)


def end_like(outcome: Outcome) -> int:
    """Ends this process as the child ended: by the same signal, or by the exit code returned.

    So a shell shows 128 + n, `subprocess` shows -n, and `timeout` and `make` see what they would
    have seen. As process 1 of a container no signal of our own ends us: then 128 + n is returned.
    """
    if outcome.signal_number is None:
        assert outcome.exit_code is not None
        return outcome.exit_code
    # One core file, the child's, is enough.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(outcome.signal_number, signal.SIG_DFL)
    os.kill(os.getpid(), outcome.signal_number)
    return 128 + outcome.signal_number
