"""The run directories of the tests of the command line."""

from tests.cli.conftest import make_run, runs_dir

__all__ = ["make_run", "runs_dir"]
