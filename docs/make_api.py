"""Prints docs/api.md: the public names of the package, from their signatures and docstrings.

`make docs` writes the page; a test compares it.
"""

import ast
import inspect
import textwrap
from typing import Any

import traceml_agent

HEAD = """# The API

Nothing of this is needed: `TRACEML_ENABLE=1 python train.py` records, judges and reports without an
edit. A program that wants to know of its own run may ask:

```python
import torch
import traceml_agent as traceml
from torch.utils.data import DataLoader

model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(torch.randn(64, 8), batch_size=8)

for epoch in traceml.epochs(range(3)):
    for batch in traceml.batches(loader):
        with traceml.scope("loss", rows=len(batch)):
            loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        traceml.mark("loss", loss.detach(), kind="summary")
    numbers = traceml.summary()  # None without the agent
    if numbers is not None:
        print(numbers["traceml/steps"], numbers["traceml/diagnosis"])

traceml.trace(name="epoch", last=4)  # prints the tree
```

Importing the package takes 1 ms and imports no torch. How a program bounds and times its steps
itself: [by-hand.md](by-hand.md).

<!-- Written by `make docs` from the docstrings. -->"""


def page() -> str:
    """The whole page."""
    names = [name for name in traceml_agent.__all__ if not name.startswith("_")]
    return "\n\n".join([HEAD, *map(entry, names)]) + "\n"


def entry(name: str) -> str:
    """Heading, signature and docstring of one name."""
    found = getattr(traceml_agent, name)
    text = inspect.getdoc(found) or ""
    words = "\n\n".join(
        "\n".join(textwrap.wrap(" ".join(part.split()), 110, break_on_hyphens=False))
        for part in text.split("\n\n")
    )
    return f"## `{name}`\n\n```python\n{signature(found)}\n```\n\n{words}"


def signature(function: Any) -> str:
    """As it stands in the source: `inspect` words it in another way in each version of Python."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef) and node.returns is not None
    return f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


if __name__ == "__main__":
    print(page(), end="")
