"""Files of the program that stand in front of modules which the agent is about to import.

A `uuid.py` beside the script hides the one of the standard library; orjson looks up `uuid.UUID`
when it is imported, and without it crashes the interpreter.
"""

import importlib.util
import sys


def hidden_module() -> str | None:
    """The file that hides a needed module; None where all are what they should be."""
    uuid = sys.modules.get("uuid")
    if uuid is not None and not hasattr(uuid, "UUID"):
        return str(getattr(uuid, "__file__", "uuid"))
    if "orjson" not in sys.modules:
        spec = importlib.util.find_spec("orjson")
        if spec is not None and spec.submodule_search_locations is None:
            return str(spec.origin)
    return None
