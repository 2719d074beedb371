"""Training loops that look like something else for a while: attacks, rollouts, retries, threads.

`python rare_loops.py NAME` prints the same line of truth as loops.py; PYTHONPATH names the root.
"""

import queue
import threading

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.e2e import loops
from tests.e2e.loops import (
    BATCHES,
    Net,
    Numbers,
    evaluate,
    loader,
    loss_of,
    plain,
    sgd,
    slices,
    update,
)


def scaler_overflow_no_loader():
    """The first updates overflow and are skipped: the optimizer is never called in them."""
    model = Net()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for batch in slices():
        optimizer.zero_grad()
        scaler.scale(8 * loss_of(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() < 2.0**127
    return model, BATCHES, BATCHES


def eval_inside_accumulation():
    model, valid = Net(), loader()
    optimizer, count, steps = sgd(model), 0, 0
    for _ in range(2):
        for batch in loader():
            (loss_of(model, batch) / 4).backward()
            count += 1
            if count % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
            if count % 6 == 0:
                evaluate(model, valid, torch.no_grad())
    return model, steps, steps * 4


def accumulate_flush_last():
    """The usual `or last batch`: 12 batches, an update every 5, so 5, 5 and 2."""
    model = Net()
    optimizer, steps, count = sgd(model), 0, 0
    for _ in range(2):
        for number, batch in enumerate(loader(), 1):
            (loss_of(model, batch) / 5).backward()
            count += 1
            if number % 5 == 0 or number == BATCHES:
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
    return model, steps, count


def alternating_loaders():
    """Two data sets in turn, one update for each batch."""
    model = Net()
    optimizer, first, second = sgd(model), iter(loader()), iter(loader(shuffle=True))
    for _ in range(BATCHES):
        update(model, optimizer, next(first))
        update(model, optimizer, next(second))
    return model, 2 * BATCHES, 2 * BATCHES


def second_loader_restarts():
    """Semi-supervised: the smaller loader ends in the middle of a step and starts again."""
    model = Net()
    optimizer, short, count = sgd(model), DataLoader(Numbers(), batch_size=12), 0
    others = iter(short)
    for _ in range(2):
        for batch in loader():
            other = next(others, None)
            if other is None:
                others = iter(short)
                other = next(others)
            optimizer.zero_grad()
            (loss_of(model, batch) + loss_of(model, other)).backward()
            optimizer.step()
            count += 1
    return model, count, count


def batches_from_a_thread():
    """The loader runs in a thread of its own, a queue ahead of the training."""

    def pump(batches, ready):
        for batch in batches:
            ready.put(batch)
        ready.put(None)

    model = Net()
    optimizer, count = sgd(model), 0
    for _ in range(2):
        ready = queue.Queue(3)
        thread = threading.Thread(target=pump, args=(loader(), ready))
        thread.start()
        while (batch := ready.get()) is not None:
            update(model, optimizer, batch)
            count += 1
        thread.join()
    return model, count, count


def trained_in_eval_mode():
    """Fine-tuning with frozen statistics: the model is in eval mode all the time."""
    return plain(loader(), model=Net().eval())


def trained_in_eval_mode_no_loader():
    return plain(list(slices()), model=Net().eval())


def average_of_weights():
    model = Net()
    average, optimizer, count = torch.optim.swa_utils.AveragedModel(model), sgd(model), 0
    for _ in range(2):
        for batch in loader():
            update(model, optimizer, batch)
            average.update_parameters(model)
            count += 1
        evaluate(average, loader(), torch.no_grad())
    torch.optim.swa_utils.update_bn(loader(), average)
    return model, count, count


def attack(batches):
    """Adversarial training: three backward passes to the inputs, then the one that counts."""
    model = Net()
    optimizer, count = sgd(model), 0
    for inputs, labels in batches:
        change = torch.zeros_like(inputs, requires_grad=True)
        for _ in range(3):
            loss_of(model, (inputs + change, labels)).backward()
            change.data.add_(0.01 * change.grad.sign())
            change.grad.zero_()
        update(model, optimizer, (inputs + change.detach(), labels))
        count += 1
    return model, count, None


def attack_loader():
    return attack(loader())


def attack_no_loader():
    return attack(list(slices()))


def sharpness_aware(batches):
    """SAM: climb by hand, a second backward pass there, climb down, then the update."""
    model = Net()
    optimizer, count = sgd(model), 0
    for batch in batches:
        loss_of(model, batch).backward()
        moves = [0.01 * parameter.grad for parameter in model.parameters()]
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.add_(move)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.sub_(move)
        optimizer.step()
        optimizer.zero_grad()
        count += 1
    return model, count, None


def sharpness_aware_loader():
    return sharpness_aware(loader())


def sharpness_aware_no_loader():
    return sharpness_aware(list(slices()))


def replayed_memory():
    """Acts each time without gradients, learns from memory every third time."""
    net, target, memory, count = Net(), Net(), [], 0
    optimizer = torch.optim.Adam(net.parameters())
    for turn, (state, action) in enumerate(slices(60)):
        with torch.no_grad():
            net(state[:1])
        memory.append((state, action))
        if turn >= 12 and turn % 3 == 0:
            seen, _ = memory[turn // 2]
            with torch.no_grad():
                goal = target(seen).max(1).values
            optimizer.zero_grad()
            nn.functional.mse_loss(net(seen).max(1).values, goal).backward()
            optimizer.step()
            count += 1
            if count % 5 == 0:
                target.load_state_dict(net.state_dict())
    return net, count, count


def loader_over_a_rollout():
    policy, count = Net(), 0
    optimizer = torch.optim.Adam(policy.parameters())
    for _ in range(4):
        states, actions = [], []
        for state, _ in slices(8):
            with torch.no_grad():
                states.append(state)
                actions.append(policy(state).argmax(1))
        seen = TensorDataset(torch.cat(states), torch.cat(actions))
        for _ in range(2):
            for batch in DataLoader(seen, batch_size=8, shuffle=True):
                update(policy, optimizer, batch)
                count += 1
    return policy, count, count


def delayed_second_optimizer():
    """TD3: the critic learns each time, the actor every second time."""
    actor, critic = nn.Linear(8, 8), nn.Linear(8, 1)
    actor_optimizer, critic_optimizer = sgd(actor), sgd(critic)
    for turn, (state, _) in enumerate(slices(20)):
        critic_optimizer.zero_grad()
        critic(state).square().mean().backward()
        critic_optimizer.step()
        if turn % 2:
            actor_optimizer.zero_grad()
            critic(actor(state)).mean().backward()
            actor_optimizer.step()
    return actor, 20, None


def trials_no_loader():
    """A search: each trial has a model and an optimizer of its own."""
    steps = 0
    for _ in range(5):
        model, count, _ = plain(list(slices()), epochs=1)
        steps += count
    return model, steps, steps


def loader_after_no_loader():
    """Pretraining on slices, then training with a loader and another optimizer."""
    _, before, _ = plain(list(slices()), epochs=1)
    model, after, _ = plain(loader(), epochs=1)
    return model, before + after, before + after


def batch_cut_for_memory():
    """One batch of the loader, cut in two to fit: two forward and backward passes an update."""
    model = Net()
    optimizer = sgd(model)
    for inputs, labels in loader():
        for part in zip(inputs.chunk(2), labels.chunk(2), strict=True):
            (loss_of(model, part) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, BATCHES, None


class ClippingSGD(torch.optim.SGD):
    """Its `step` calls that of its base class."""

    def step(self, closure=None):
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


def optimizer_of_a_hooked_base():
    """Where the base class was used too, torch calls the step hooks for both classes."""
    first, model = Net(), Net()
    sgd(first)
    optimizer = ClippingSGD(model.parameters(), lr=0.01)
    for batch in slices():
        update(model, optimizer, batch)
    return model, BATCHES, BATCHES


def closure_over_a_loader():
    """LBFGS on the whole data set: each evaluation of the closure goes through the loader."""
    model, batches = Net(), loader()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure():
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = loss_of(model, batch) / BATCHES
            loss.backward()
            total += loss.item()
        return total

    for _ in range(4):
        optimizer.step(closure)
    return model, 4, None


def weights_written_before_fetch_ahead():
    """What is loaded into the model (or broadcast to it) is no step; then one batch ahead."""
    model = Net()
    optimizer = sgd(model)
    model.load_state_dict(Net().state_dict())
    batches = iter(loader())
    batch = next(batches)
    while batch is not None:
        following = next(batches, None)
        update(model, optimizer, batch)
        batch = following
    return model, BATCHES, BATCHES


RARE_LOOPS = {
    function.__name__: function
    for function in (
        scaler_overflow_no_loader, eval_inside_accumulation, accumulate_flush_last,
        alternating_loaders, second_loader_restarts, batches_from_a_thread, trained_in_eval_mode,
        trained_in_eval_mode_no_loader, average_of_weights, attack_loader, attack_no_loader,
        sharpness_aware_loader, sharpness_aware_no_loader, replayed_memory, loader_over_a_rollout,
        delayed_second_optimizer, trials_no_loader,
        loader_after_no_loader, batch_cut_for_memory, optimizer_of_a_hooked_base,
        closure_over_a_loader, weights_written_before_fetch_ahead,
    )
}  # fmt: skip

if __name__ == "__main__":
    loops.LOOPS.update(RARE_LOOPS)
    loops.main()
