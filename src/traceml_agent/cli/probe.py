"""Runs inside the interpreter of a user's command (`-c`, any Python from 2.7 on) and prints facts.

The source of this file is handed to that interpreter; the agent itself never imports it. Each
line printed answers one question, the costly ones last, and nothing is caught: where a line is
missing, the last line on stderr says why.
"""
# mypy: ignore-errors
# Annotations would be a syntax error in the oldest Python that is to be told that it is too old.

import sys

# `-c` puts the working directory first: a json.py of the user must not be run by a question.
if sys.path and sys.path[0] == "":
    del sys.path[0]

import json
import os

MARK = "TRACEML-PROBE:"


def say(facts):
    """Writes one marked line. Not by `sys.stdout`: a sitecustomize may have replaced it."""
    os.write(1, ("\n" + MARK + json.dumps(facts) + "\n").encode("ascii"))


def interpreter():
    """What can be said in any Python."""
    flags = sys.flags
    implementation = getattr(sys, "implementation", None)
    cache_tag = getattr(implementation, "cache_tag", None) or "unknown"
    return {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "version": list(sys.version_info[:3]),
        "tag": cache_tag + getattr(sys, "abiflags", ""),
        "no_site": bool(flags.no_site),
        "ignores_environment": bool(flags.ignore_environment),
        "changes_user": os.geteuid() != os.getuid() or os.getegid() != os.getgid(),
        "variables": {k: v for k, v in os.environ.items() if k.startswith("TRACEML_")},
    }


def startup():
    """Whether this interpreter processes the startup file, and where the file lies."""
    import importlib.util

    boot = sys.modules.get("_traceml_boot")
    package = importlib.util.find_spec("traceml_agent")
    origin = getattr(package, "origin", None)
    pth_dirs = [p for p in sys.path if os.path.isfile(os.path.join(p, "traceml_agent.pth"))]
    return {
        "boot_runs": bool(getattr(boot, "_started", False)) or bool(silent_dirs(pth_dirs)),
        "package_dir": os.path.dirname(origin) if origin else None,
        "pth_dirs": pth_dirs,
    }


def silent_dirs(pth_dirs):
    """Site directories whose startup file was processed and, switched off, did nothing."""
    if os.environ.get("TRACEML_ENABLE", "") not in ("", "0"):
        return []
    import site

    site_dirs = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        site_dirs.append(site.getusersitepackages())
    return [p for p in pth_dirs if p in site_dirs]


def settings():
    """What the agent itself resolves here. Fails where a dependency of it is missing."""
    for name in ("wrapt", "psutil", "orjson", "platformdirs"):
        __import__(name)
    from traceml_agent.config import resolve
    from traceml_agent.version import __version__

    resolved = resolve(os.environ)
    return {
        "agent_version": __version__,
        "runs_dir": str(resolved.config.runs_dir),
        "problems": list(resolved.problems),
    }


def torch():
    """The version of torch, None where there is none. Fails where the import does."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return {"torch_version": None}
    return {"torch_version": str(__import__("torch").__version__)}


facts = interpreter()
if tuple(facts["version"]) >= (3, 10):
    facts.update(startup())
say(facts)
if "all" in sys.argv[1:] and facts.get("package_dir"):
    say(settings())
    say(torch())
# Not by way of atexit: the agent under test has nothing to report about this process.
os._exit(0)
