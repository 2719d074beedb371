"""Training loops of every shape, as users write them; none knows the agent.

`python loops.py NAME` runs one and prints, as its last line, what really happened: the number of
steps (optimizer updates, or attempts), of micro-batches, and a hash of the final parameters.
"""

import hashlib
import json
import sys
import threading

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

BATCH = 4
BATCHES = 12
EPOCHS = 2


class Numbers(Dataset):
    def __len__(self):
        return BATCH * BATCHES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(8, generator=generator), index % 3


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(BATCH * BATCHES):
            yield Numbers()[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def loader(**settings):
    return DataLoader(Numbers(), batch_size=BATCH, **settings)


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr)


def loss_of(model, batch):
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def update(model, optimizer, batch):
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()


def plain(batches, epochs=EPOCHS, model=None):
    model = model or Net()
    optimizer = sgd(model)
    count = 0
    for _ in range(epochs):
        for batch in batches:
            update(model, optimizer, batch)
            count += 1
    return model, count, count


def map_loader():
    return plain(loader(shuffle=True))


def workers_fork():
    return plain(loader(num_workers=2, multiprocessing_context="fork"))


def workers_spawn():
    return plain(loader(num_workers=1, multiprocessing_context="spawn"), epochs=1)


def workers_forkserver():
    return plain(loader(num_workers=1, multiprocessing_context="forkserver"), epochs=1)


def workers_persistent():
    return plain(loader(num_workers=2, persistent_workers=True))


def iterable():
    return plain(DataLoader(Stream(), batch_size=BATCH))


def iterable_workers():
    return plain(DataLoader(Stream(), batch_size=BATCH, num_workers=1))


def unbatched():
    data = [(torch.randn(BATCH, 8), torch.tensor([0, 1, 2, 0])) for _ in range(BATCHES)]
    return plain(DataLoader(data, batch_size=None))


def slices(count=BATCHES):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(BATCH, 8, generator=generator), torch.tensor([0, 1, 2, 0])


def no_loader():
    return plain(list(slices()))


def accumulate(batches, every=4):
    model, batch_count, steps = Net(), 0, 0
    optimizer = sgd(model)
    for _ in range(EPOCHS):
        for batch in batches:
            (loss_of(model, batch) / every).backward()
            batch_count += 1
            if batch_count % every == 0:
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
    return model, steps, steps * every


def accumulate_loader():
    return accumulate(loader())


def accumulate_remainder():
    return accumulate(loader(), every=5)


def accumulate_no_loader():
    return accumulate(list(slices()))


def gan(batches):
    generator, critic = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    generator_optimizer, critic_optimizer = sgd(generator), sgd(critic)
    count = 0
    for real, _ in batches:
        fake = generator(torch.randn(len(real), 8))
        critic_optimizer.zero_grad()
        critic(real).mean().backward()
        (-critic(fake.detach()).mean()).backward()
        critic_optimizer.step()
        generator_optimizer.zero_grad()
        critic(fake).mean().backward()
        generator_optimizer.step()
        count += 1
    return generator, count, count


def gan_loader():
    return gan(loader())


def gan_no_loader():
    return gan(list(slices()))


def wgan_loader():
    """Five critic updates on the same batch, one of the generator: each repeat is a step."""
    generator, critic = nn.Linear(8, 8), nn.Linear(8, 1)
    generator_optimizer, critic_optimizer = sgd(generator), sgd(critic)
    steps = 0
    for real, _ in loader():
        for _ in range(5):
            critic_optimizer.zero_grad()
            fake = generator(torch.randn(len(real), 8)).detach()
            (critic(fake) - critic(real)).mean().backward()
            critic_optimizer.step()
            steps += 1
        generator_optimizer.zero_grad()
        (-critic(generator(torch.randn(len(real), 8))).mean()).backward()
        generator_optimizer.step()
    return generator, steps, None


def lbfgs():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    count = 0
    for batch in loader():

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        count += 1
    return model, count, count


def adam_foreach():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    for batch in loader():
        update(model, optimizer, batch)
    return model, BATCHES, BATCHES


class SignSGD(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= 0.01 * parameter.grad.sign()


def custom_optimizer():
    model = Net()
    optimizer = SignSGD(model.parameters())
    for batch in loader():
        update(model, optimizer, batch)
    return model, BATCHES, BATCHES


def grad_scaler():
    """Some updates are skipped for infinite gradients: an iteration all the same."""
    model = Net()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for number, batch in enumerate(loader()):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        scaler.scale(loss * (float("inf") if number % 4 == 3 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    return model, BATCHES, BATCHES


def compiled(backend):
    model = Net()
    fast = torch.compile(model, backend=backend)
    optimizer = sgd(model)
    for batch in loader():
        optimizer.zero_grad()
        loss_of(fast, batch).backward()
        optimizer.step()
    return model, BATCHES, BATCHES


def compile_eager():
    return compiled("eager")


def compile_aot_eager():
    return compiled("aot_eager")


def compile_whole_step():
    model = Net()
    optimizer = sgd(model)

    @torch.compile(backend="eager")
    def step(inputs, labels):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    for inputs, labels in loader():
        step(inputs, labels)
    return model, BATCHES, BATCHES


def evaluate(model, batches, context):
    model.eval()
    with context:
        for batch in batches:
            loss_of(model, batch).item()
    model.train()


def eval_each_epoch():
    model, valid = Net(), loader()
    optimizer, count = sgd(model), 0
    evaluate(model, valid, torch.no_grad())  # a sanity check before training
    for _ in range(EPOCHS):
        for batch in loader(shuffle=True):
            update(model, optimizer, batch)
            count += 1
        evaluate(model, valid, torch.inference_mode())
    return model, count, count


def eval_mid_epoch():
    model, valid = Net(), loader(num_workers=1)
    optimizer, count = sgd(model), 0
    for _ in range(EPOCHS):
        for batch in loader():
            update(model, optimizer, batch)
            count += 1
            if count % 5 == 0:
                evaluate(model, valid, torch.no_grad())
    return model, count, count


def eval_with_gradients():
    """Validation by somebody who forgot no_grad."""
    model, valid = Net(), loader()
    optimizer, count = sgd(model), 0
    for _ in range(EPOCHS):
        for batch in loader():
            update(model, optimizer, batch)
            count += 1
        evaluate(model, valid, torch.enable_grad())
    return model, count, count


def eval_on_training_loader():
    model, both = Net(), loader()
    optimizer, count = sgd(model), 0
    for _ in range(EPOCHS):
        for batch in both:
            update(model, optimizer, batch)
            count += 1
        evaluate(model, both, torch.no_grad())
    return model, count, count


def several_models():
    encoder, decoder = nn.Linear(8, 4), nn.Linear(4, 3)
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
    criterion = nn.CrossEntropyLoss()
    for inputs, labels in loader():
        optimizer.zero_grad()
        criterion(decoder(encoder(inputs)), labels).backward()
        optimizer.step()
    return decoder, BATCHES, BATCHES


def distillation():
    teacher, student = Net().eval(), Net()
    optimizer = sgd(student)
    for inputs, _ in loader():
        with torch.no_grad():
            target = teacher(inputs)
        optimizer.zero_grad()
        nn.functional.mse_loss(student(inputs), target).backward()
        optimizer.step()
    return student, BATCHES, BATCHES


def rollouts():
    """Reinforcement learning: act without gradients, then several updates on what was seen."""
    policy = Net()
    optimizer = torch.optim.Adam(policy.parameters())
    steps = 0
    for _ in range(4):
        seen = []
        for state, _ in slices(10):
            with torch.no_grad():
                seen.append((state, policy(state).argmax(1)))
        for batch in seen[:6]:
            update(policy, optimizer, batch)
            steps += 1
    return policy, steps, steps


def manual(batches, apply):
    model = Net()
    count = 0
    for batch in batches:
        loss_of(model, batch).backward()
        apply(model)
        model.zero_grad()
        count += 1
    return model, count, count


def subtract(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad


def subtract_data(model):
    for parameter in model.parameters():
        parameter.data.sub_(0.05 * parameter.grad)


def manual_loader():
    return manual(loader(), subtract)


def manual_no_loader():
    return manual(list(slices()), subtract)


def manual_data_loader():
    return manual(loader(), subtract_data)


def manual_data_no_loader():
    return manual(list(slices()), subtract_data)


def autograd_grad():
    model = Net()
    for batch in loader():
        gradients = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
    return model, BATCHES, None


def tensors_only():
    weights = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.1)
    count = 0
    for inputs, _ in slices():
        optimizer.zero_grad()
        ((inputs @ weights - 1) ** 2).mean().backward()
        optimizer.step()
        count += 1
    model = nn.Linear(8, 1)
    model.weight.data[0] = weights.detach()
    return model, count, count


def zipped_loaders():
    model = Net()
    optimizer = sgd(model)
    for source, target in zip(loader(), loader(shuffle=True), strict=True):
        optimizer.zero_grad()
        (loss_of(model, source) + loss_of(model, target)).backward()
        optimizer.step()
    return model, BATCHES, BATCHES


def one_batch_many_steps():
    model = Net()
    optimizer = sgd(model)
    batch = next(iter(loader()))
    for _ in range(30):
        update(model, optimizer, batch)
    return model, 30, 30


def fetch_ahead():
    """Asks for the next batch before it uses the present one."""
    model = Net()
    optimizer, count = sgd(model), 0
    for _ in range(EPOCHS):
        batches = iter(loader())
        batch = next(batches, None)
        while batch is not None:
            following = next(batches, None)
            update(model, optimizer, batch)
            batch = following
            count += 1
    return model, count, count


def loader_made_anew():
    model = Net()
    optimizer, count = sgd(model), 0
    for _ in range(EPOCHS):
        for batch in loader(shuffle=True):
            update(model, optimizer, batch)
            count += 1
    return model, count, count


def early_break():
    model = Net()
    optimizer, count = sgd(model), 0
    for _ in range(3):
        for number, batch in enumerate(loader()):
            if number == 5:
                break
            update(model, optimizer, batch)
            count += 1
    return model, count, count


def two_optimizers_one_backward():
    model = Net()
    first, second = sgd(model.body), sgd(model.head)
    for batch in slices():
        first.zero_grad()
        second.zero_grad()
        loss_of(model, batch).backward()
        first.step()
        second.step()
    return model, BATCHES, BATCHES


def optimizer_in_backward():
    """One optimizer a parameter, stepping as soon as its gradient is there."""
    model = Net()
    optimizers = {
        parameter: torch.optim.SGD([parameter], lr=0.05) for parameter in model.parameters()
    }

    def apply(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(apply)
    for batch in loader():
        loss_of(model, batch).backward()
    return model, BATCHES, BATCHES


def in_a_thread():
    result = []
    thread = threading.Thread(target=lambda: result.append(map_loader()))
    thread.start()
    thread.join()
    return result[0]


class Calling(Net):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * 1.0


def overrides_call():
    return plain(loader(), model=Calling())


def caught_error():
    """Forward fails for some batches; the loop goes on. Those batches are no steps."""
    model = Net()
    optimizer, count = sgd(model), 0
    for number, (inputs, labels) in enumerate(loader()):
        try:
            if number % 4 == 1:
                inputs = inputs[:, :5]
            update(model, optimizer, (inputs, labels))
        except RuntimeError:
            continue
        count += 1
    return model, count, count


def checkpointing():
    model = Net()
    optimizer = sgd(model)
    for inputs, labels in loader():
        optimizer.zero_grad()
        hidden = torch.utils.checkpoint.checkpoint(model.body, inputs, use_reentrant=False)
        nn.functional.cross_entropy(model.head(hidden), labels).backward()
        optimizer.step()
    return model, BATCHES, BATCHES


def checkpointing_reentrant():
    """A backward pass within the one that is counted, for each block."""
    model = Net()
    optimizer = sgd(model)
    for inputs, labels in loader():
        optimizer.zero_grad()
        inputs.requires_grad_()
        hidden = torch.utils.checkpoint.checkpoint(model.body, inputs, use_reentrant=True)
        nn.functional.cross_entropy(model.head(hidden), labels).backward()
        optimizer.step()
    return model, BATCHES, BATCHES


def sequential_nested():
    return plain(
        DataLoader(TensorDataset(torch.randn(48, 8), torch.arange(48) % 3), batch_size=BATCH),
        model=nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)),
    )


LOOPS = {
    function.__name__: function
    for function in (
        map_loader, workers_fork, workers_spawn, workers_forkserver, workers_persistent, iterable,
        iterable_workers, unbatched, no_loader, accumulate_loader, accumulate_remainder,
        accumulate_no_loader, gan_loader, gan_no_loader, wgan_loader, lbfgs, adam_foreach,
        custom_optimizer, grad_scaler, compile_eager, compile_aot_eager, compile_whole_step,
        eval_each_epoch, eval_mid_epoch, eval_with_gradients, eval_on_training_loader,
        several_models, distillation, rollouts, manual_loader, manual_no_loader,
        manual_data_loader, manual_data_no_loader, autograd_grad, tensors_only, zipped_loaders,
        one_batch_many_steps, fetch_ahead, loader_made_anew, early_break,
        two_optimizers_one_backward, optimizer_in_backward, in_a_thread, overrides_call,
        caught_error, checkpointing, checkpointing_reentrant, sequential_nested,
    )
}  # fmt: skip


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, steps, micro_batches = LOOPS[sys.argv[1]]()
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    truth = {"steps": steps, "micro_batches": micro_batches, "parameters": digest.hexdigest()}
    print(json.dumps(truth))


if __name__ == "__main__":
    main()
