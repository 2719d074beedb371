"""The layers of the package: who may import whom, lazy imports included, and the house rules."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "traceml_agent"
AGENT = REPOSITORY / "agent"
NAME = "traceml_agent"
LINE_LIMIT = 350
FORBIDDEN_STEMS = {"utils", "util", "helpers", "helper", "common", "base", "misc"}

FOUNDATION = {
    "schema", "config", "identity", "errors", "guard", "redact", "version", "run_key", "terminal",
}  # fmt: skip

LAYERS: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "redact": set(),
    "terminal": set(),
    "schema": set(),
    "identity": {"schema"},
    "run_key": {"identity"},
    "config": {"schema", "errors", "redact", "settings_file"},
    "settings_file": set(),
    "guard": {"schema", "errors", "redact"},
    "spool": FOUNDATION,
    "capture": FOUNDATION | {"spool"},
    "startup": {"guard", "capture"},
    "report": {"schema", "spool", "errors", "version"},
    "sinks": {"schema", "spool", "errors", "version", "report"},
    # guard: the fold after `traceml-agent run` must not change the exit code of the command.
    "cli": {
        "report",
        "spool",
        "sinks",
        "config",
        "errors",
        "schema",
        "guard",
        "redact",
        "version",
        "terminal",
    },
    "integrations": {
        "capture",
        "schema",
        "guard",
        "errors",
        "config",
        "spool",
        "api",
        "lifecycle",
    },
    "api": FOUNDATION | {"capture", "tracing"},
    "tracing": FOUNDATION | {"capture", "spool"},
    "lifecycle": FOUNDATION | {"capture", "startup", "api"},
    "by_hand": FOUNDATION | {"capture", "lifecycle"},
    "watching": {"guard", "capture"},
    "__init__": {"version", "api", "lifecycle", "by_hand", "watching"},
    "__main__": {"cli"},
}
"""What each layer may import besides itself."""

THIRD_PARTY: dict[str, set[str]] = {
    "config": {"platformdirs"},
    "spool": {"orjson", "platformdirs"},
    "capture": {"wrapt", "psutil", "pynvml", "orjson"},
    "lifecycle": {"_traceml_boot"},
    "report": {"numpy", "orjson", "pandas"},  # pandas: for a data frame of spans alone
}

BRIDGES = {
    ("capture/exit.py", "report.fold"),
    ("capture/exit.py", "report.render.text"),
    ("capture/hooks.py", "integrations.huggingface"),
    ("capture/hooks.py", "integrations.accelerate"),
    ("capture/hooks.py", "integrations.deepspeed"),
    ("capture/hooks.py", "integrations.lightning"),
    ("integrations/ray.py", "report.fold"),
    ("api.py", "report.fold"),
    ("api.py", "report.scalars"),
    ("tracing.py", "report.spans"),
    ("tracing.py", "report.automatic"),
}
"""Imports against the order of the layers; inside functions, so that training never loads them."""

MAY_NAME_TORCH = ("capture/device.py", "capture/patches/")
CATCH_ALL_FILES = {PACKAGE / "guard.py", AGENT / "_traceml_boot.py"}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether the statement stands in a function."""

    file: str
    line: int
    module: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def sources() -> list[Path]:
    """Every Python file of the package and of the startup directory."""
    return sorted([*PACKAGE.rglob("*.py"), *AGENT.rglob("*.py")])


def imports() -> Iterator[Import]:
    """Every import statement of the package, wherever it stands."""
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        yield from _walk(file, ast.parse(path.read_text(encoding="utf-8")), lazy=False)


def _walk(file: str, node: ast.AST, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, inside)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno}: a relative import"
            assert child.module is not None
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                is_module = child.module.split(".")[0] == NAME and _is_module(full)
                yield Import(file, child.lineno, full if is_module else child.module, inside)
        yield from _walk(file, child, inside)


def _is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def layer_of(file: str) -> str:
    """The first part of a path in the package: a subpackage, or a module at the top."""
    return file.split("/")[0].removesuffix(".py")


def is_type_only(found: Import) -> bool:
    """Whether the import stands under `if TYPE_CHECKING:` and never runs."""
    tree = ast.parse((PACKAGE / found.file).read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        and node.lineno < found.line <= (node.end_lineno or 0)
        for node in ast.walk(tree)
    )


def test_each_layer_imports_only_what_lies_below_it() -> None:
    wrong = []
    for found in imports():
        name, _, rest = found.module.partition(".")
        if name != NAME:
            continue
        own, other = layer_of(found.file), layer_of(rest.replace(".", "/")) or "__init__"
        if (found.file, rest) in BRIDGES and found.lazy:
            continue
        if other != own and other not in LAYERS[own]:
            wrong.append(str(found))
    assert wrong == []


def test_every_layer_has_a_row_in_the_table() -> None:
    layers = {layer_of(path.relative_to(PACKAGE).as_posix()) for path in PACKAGE.rglob("*.py")}
    assert layers <= LAYERS.keys()


def test_each_layer_imports_only_its_third_parties() -> None:
    known = sys.stdlib_module_names | {NAME, "torch"}
    wrong = [
        str(found)
        for found in imports()
        if (top := found.module.split(".")[0]) not in known
        and top not in THIRD_PARTY.get(layer_of(found.file), set())
        # Each sink, integration and page of the interface has a library of its own.
        and not (layer_of(found.file) in ("sinks", "integrations", "cli") and found.lazy)
    ]
    assert wrong == []


def test_torch_is_named_only_by_what_watches_it() -> None:
    wrong = [
        str(found)
        for found in imports()
        if found.module.split(".")[0] in ("torch", "torchvision", "torchaudio")
        and not found.file.startswith((*MAY_NAME_TORCH, "integrations/"))
        and not is_type_only(found)
    ]
    assert wrong == []


def test_no_file_imports_torch_before_the_user_does() -> None:
    eager = [
        str(found)
        for found in imports()
        if found.module.split(".")[0] == "torch" and not found.lazy and not is_type_only(found)
    ]
    assert eager == []


def test_the_boot_module_imports_sys_and_os_alone() -> None:
    tree = ast.parse((AGENT / "_traceml_boot.py").read_text(encoding="utf-8"))
    names = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    assert names == {"os", "sys"}
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize(
    "path", sources(), ids=lambda path: path.relative_to(REPOSITORY).as_posix()
)
def test_everything_is_caught_at_the_guard_alone(path: Path) -> None:
    if path in CATCH_ALL_FILES:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and _catches_all(node) and not _raises_again(node)
    ]
    wrong += [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("suppress")
        and any(ast.unparse(argument) in _ALL for argument in node.args)
    ]
    assert wrong == []


_ALL = ("Exception", "BaseException")


def _catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in _ALL for kind in kinds)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether the last statement is a bare `raise`."""
    final = handler.body[-1]
    return isinstance(final, ast.Raise) and final.exc is None


def test_no_module_is_longer_than_the_limit_and_none_has_a_name_without_a_subject() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    too_long = {path.name: length for path, length in lengths.items() if length > LINE_LIMIT}
    assert too_long == {}
    assert [path for path in lengths if path.stem in FORBIDDEN_STEMS] == []


def test_every_module_says_what_it_is_for() -> None:
    missing = [
        path.relative_to(REPOSITORY).as_posix()
        for path in sources()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert missing == []
