"""Text for stdout, whatever it takes."""

import sys


def printable(text: str) -> str:
    """The text, with a question mark for each character that stdout cannot write."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
