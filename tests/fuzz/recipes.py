"""Training loops that people write, with the counts that a summary of them must show."""

from dataclasses import dataclass

from tests.fuzz.programs import Node, Program

KINDS = (
    "plain",
    "closure",
    "closure_over_a_loader",
    "skips",
    "two",
    "hooks",
    "subclass",
    "raises",
)


@dataclass(frozen=True)
class Recipe:
    """A training loop that people write."""

    kind: str
    updates: int  # in an epoch
    accumulate: int
    epochs: int
    with_loader: bool
    evaluate_every: int  # updates; 0: never
    evaluate_from_loader: bool
    copies: bool
    logs: bool
    saves: bool
    compiles: bool
    time: int


@dataclass(frozen=True)
class Truth:
    """What must be counted."""

    steps: int
    micro_batches: int
    updates: int
    samples: int


def samples() -> dict[str, Recipe]:
    """One recipe of each kind, with and without a loader, by name."""
    return {
        f"{kind}-{'loader' if with_loader else 'free'}": Recipe(
            kind, 3, 2, 2, with_loader, 2, with_loader, True, True, True, True, 2
        )
        for kind in KINDS
        for with_loader in (True, False)
    }


def loop_of(recipe: Recipe) -> tuple[Program, Truth]:
    """The recipe as a program, and what must be counted."""
    # The last one has a `step` that calls that of its base class, which is hooked then too.
    program = [Node("make_optimizer", choice) for choice in range(3)]
    steps = micro = skipped = 0
    accumulate = recipe.accumulate if recipe.kind in ("plain", "skips", "subclass") else 1
    from_loader = recipe.with_loader and recipe.kind != "closure_over_a_loader"
    for _ in range(recipe.epochs):
        for number in range(recipe.updates):
            for _ in range(accumulate):
                if from_loader:
                    program.append(Node("fetch", 0, recipe.time, recipe.time))
                program += _body(recipe, first=not steps)
                micro += 1
            skips = recipe.kind == "skips" and number == 1
            skipped += skips
            program += _update(recipe, skips)
            steps += 1
            if recipe.logs:
                program.append(Node("to_host"))
            if recipe.evaluate_every and steps % recipe.evaluate_every == 0:
                program += _evaluation(recipe)
        if from_loader:
            program.append(Node("fetch_nothing"))
        if recipe.saves:
            program.append(Node("save"))
    # A loader inside a closure belongs to the update: its batches are not told apart.
    samples = 4 * micro if from_loader else 0
    per_step = 2 if recipe.kind in ("two", "hooks") else 1
    return tuple(program), Truth(steps, micro, per_step * steps - skipped, samples)


def _body(recipe: Recipe, first: bool) -> list[Node]:
    compilation = (Node("compile"),) if recipe.compiles and first else ()
    inner = (Node("update", 0), Node("update", 1)) if recipe.kind == "hooks" else ()
    copy = [Node("to_device")] if recipe.copies else []
    if recipe.kind.startswith("closure"):
        return copy
    forward = Node("forward", 0, 1, recipe.time, compilation)
    return [*copy, forward, Node("backward", 0, 1, recipe.time, inner)]


def _update(recipe: Recipe, skips: bool) -> list[Node]:
    evaluation = (Node("forward"), Node("backward"))
    if recipe.kind == "hooks":
        return []
    if recipe.kind == "closure":
        return [Node("update", 0, 1, recipe.time, evaluation * 3)]
    if recipe.kind == "closure_over_a_loader":
        batches = (Node("fetch"), *evaluation) * 2
        return [Node("update", 0, 1, 1, (*batches, Node("fetch_nothing")) * 2)]
    if recipe.kind == "skips":
        return [Node("update_skipped" if skips else "update_by_scaler")]
    if recipe.kind == "two":
        return [Node("update", 0), *evaluation, Node("update", 1)]
    if recipe.kind == "subclass":
        return [Node("update", 2)]
    if recipe.kind == "raises":
        return [Node("try", 0, 1, 1, (Node("forward", 1, 1, 1, (Node("raise"),)),)), Node("update")]
    return [Node("update")]


def _evaluation(recipe: Recipe) -> list[Node]:
    if recipe.evaluate_from_loader:
        return [Node("fetch", 2), Node("evaluate"), Node("fetch_nothing", 2)]
    return [Node("evaluate"), Node("evaluate", 1)]
