"""`python -m traceml_agent` is `traceml-agent`."""

import sys

from traceml_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
