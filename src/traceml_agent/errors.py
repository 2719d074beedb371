"""Errors raised on purpose. The command line turns them into one message and exit code 2."""


class TracemlError(Exception):
    """Something the user can act on: the message says what, where and what to do."""


class ConfigError(TracemlError):
    """A setting has a value that cannot be used."""


class NoRun(TracemlError):
    """The run, directory or file that was asked for does not exist or is no run."""


class NoSpools(TracemlError):
    """A run directory holds no spool that can be read."""


class NewerSchema(TracemlError):
    """A file was written by a newer version of the agent than this one."""


class UnsafeDirectory(TracemlError):
    """A directory is owned by somebody else, is a symbolic link, or others may write to it."""


class PartsOfSeveralRuns(TracemlError):
    """Directories that were to be merged hold different runs."""
