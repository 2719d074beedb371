"""The shared object that stands between the processes of these tests and the kernel."""

import pytest

from tests.disk.edge import build


@pytest.fixture(scope="session")
def edge(tmp_path_factory):
    """Path of the shared object."""
    return build(tmp_path_factory.mktemp("edge"))
