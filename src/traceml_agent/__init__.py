"""traceml-agent: why is this PyTorch training slow, with no edit of its source.

Importing the package imports neither torch nor anything else of the agent.
"""

from traceml_agent.version import __version__

__all__ = ["__version__"]
