"""Training loops that bound their steps themselves, some of them all and some a few.

Prints, as its last line, how many steps each loop had and how many were counted (None without the
agent), and a hash of the parameters. A bracket with nothing in it ends each loop: it closes the
automatic step that may be open.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading

import torch
from torch import nn

import traceml_agent as traceml

BATCHES = 6
torch.manual_seed(0)
MODEL = nn.Linear(8, 2)
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.01)
OTHER = torch.optim.SGD(MODEL.parameters(), lr=0.02)


def loader(count=BATCHES):
    return torch.utils.data.DataLoader(torch.randn(count * 4, 8), batch_size=4)


def gradients(batch, model=MODEL):
    MODEL.zero_grad()
    model(batch).square().mean().backward()


def update(batch, model=MODEL):
    gradients(batch, model)
    OPTIMIZER.step()


def fetched_before():
    for batch in loader():
        with traceml.trace_step(MODEL):
            update(batch)
    return BATCHES


def fetched_inside():
    batches = iter(loader())
    while True:
        with traceml.trace_step():
            batch = next(batches, None)
            if batch is None:
                break
            update(batch)
    return BATCHES


def ended_by_stop_iteration():
    batches = iter(loader())
    with contextlib.suppress(StopIteration):
        while True:
            with traceml.trace_step():
                update(next(batches))
    return BATCHES


def every_second():
    for number, batch in enumerate(loader()):
        with traceml.trace_step() if number % 2 else contextlib.nullcontext():
            update(batch)
    return BATCHES


def the_first_half():
    for number, batch in enumerate(loader()):
        with traceml.trace_step() if number < BATCHES / 2 else contextlib.nullcontext():
            update(batch)
    return BATCHES


def some_without_a_loader():
    for number, batch in enumerate(torch.randn(9, 4, 8)):
        with traceml.trace_step() if number % 3 == 1 else contextlib.nullcontext():
            update(batch)
    return 9


def micro_batches():
    batches = iter(loader(8))
    for _ in range(2):
        with traceml.trace_step():
            for _ in range(4):
                gradients(next(batches))
            OPTIMIZER.step()
    return 2


def five_to_one():
    """Each repeat would be a step of its own."""
    for batch in loader():
        with traceml.trace_step():
            for _ in range(5):
                update(batch)
            gradients(batch)
            OTHER.step()
    return BATCHES


def the_update_alone():
    for batch in loader():
        gradients(batch)
        with traceml.trace_step():
            OPTIMIZER.step()
    return BATCHES


def the_update_outside():
    for batch in loader():
        with traceml.trace_step():
            gradients(batch)
        OPTIMIZER.step()
    return BATCHES


def without_an_optimizer():
    for batch in loader():
        with traceml.trace_step(MODEL):
            gradients(batch)
            with torch.no_grad():
                for parameter in MODEL.parameters():
                    parameter -= 0.01 * parameter.grad
    return BATCHES


def with_nothing_to_see():
    for _ in range(3):
        with traceml.trace_step():
            sum(range(100))
    return 3


def nested():
    step = traceml.trace_step()
    for batch in loader():
        with step, traceml.trace_step(MODEL):
            update(batch)
            with step:
                pass
    return BATCHES


@traceml.trace_step(MODEL)
def decorated_update(batch):
    update(batch)


def decorated():
    for batch in loader():
        decorated_update(batch)
    return BATCHES


def failed_before_and_after_the_update():
    for number, batch in enumerate(loader()):
        with contextlib.suppress(RuntimeError), traceml.trace_step():
            if number % 3 == 1:
                batch = batch[:, :3]  # this one fails in forward: no step
            update(batch)
            if number % 3 == 2:
                raise RuntimeError("too late to undo the update")
    return 4


def an_evaluation_between():
    for number, batch in enumerate(loader()):
        with traceml.trace_step():
            update(batch)
        if number % 3 == 0:
            with torch.no_grad():
                for other in loader(2):
                    MODEL(other)
    return BATCHES


def left_by_continue():
    for batch in loader():
        with traceml.trace_step():
            update(batch)
            continue
    return BATCHES


def in_a_generator():
    def steps():
        for batch in loader():
            with traceml.trace_step():
                update(batch)
                yield

    for _ in steps():
        pass
    return BATCHES


def beside_another_thread():
    def elsewhere():
        for _ in range(5):
            with traceml.trace_step():
                torch.randn(2)

    thread = threading.Thread(target=elsewhere)
    for batch in loader():
        with traceml.trace_step():
            update(batch)
            if not thread.ident:
                thread.start()
    thread.join()
    return BATCHES


def around_a_fork():
    for batch in loader(2):
        with traceml.trace_step():
            update(batch)
            pid = os.fork()
            if pid == 0:
                break
            os.waitpid(pid, 0)
    else:
        return 2
    os._exit(0)


def compiled():
    fast = torch.compile(MODEL, backend="eager", fullgraph=True)

    @torch.compile(backend="eager")
    def whole(batch):
        with traceml.trace_step():
            return batch * 2

    for batch in loader():
        with traceml.trace_step(fast):
            update(whole(batch), fast)
    return BATCHES


def closing_by_closure():
    rule = torch.optim.LBFGS(MODEL.parameters(), lr=0.01, max_iter=3)
    for batch in loader(3):

        def closure(batch=batch):
            with traceml.trace_step():
                MODEL.zero_grad()
                loss = MODEL(batch).square().mean()
                loss.backward()
                return loss

        with traceml.trace_step():
            rule.step(closure)
    return 3


LOOPS = (
    fetched_before, fetched_inside, ended_by_stop_iteration, every_second, the_first_half,
    some_without_a_loader, micro_batches, five_to_one, the_update_alone, the_update_outside,
    without_an_optimizer, with_nothing_to_see, nested, decorated,
    failed_before_and_after_the_update, an_evaluation_between, left_by_continue, in_a_generator,
    beside_another_thread, around_a_fork, compiled, closing_by_closure,
)  # fmt: skip


def steps():
    return traceml.health().get("steps", 0)


def main():
    for argument in sys.argv[1:]:
        traceml.init(**json.loads(argument))
    found = {}
    for loop in LOOPS:
        with traceml.trace_step():
            pass
        before = steps()
        expected = loop()
        with traceml.trace_step():
            pass
        is_on = traceml.health()["enabled"]
        found[loop.__name__] = [expected, steps() - before - 1 if is_on else None]
    digest = hashlib.sha256(MODEL.weight.detach().numpy().tobytes()).hexdigest()
    print(json.dumps({"loops": found, "parameters": digest, "faults": traceml.health()}))


if __name__ == "__main__":
    main()
