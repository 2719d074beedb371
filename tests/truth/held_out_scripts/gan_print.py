"""A GAN with two optimizers; it prints what it draws."""

import json
import sys
import time

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

verbose = sys.argv[1] == "fault"
torch.manual_seed(17)
torch.set_printoptions(threshold=10_000, linewidth=160)

latent, pixels, batch_size, iterations = 64, 512, 64, 300

generator = nn.Sequential(
    nn.Linear(latent, 512), nn.LeakyReLU(0.2), nn.Linear(512, pixels), nn.Tanh()
)
discriminator = nn.Sequential(nn.Linear(pixels, 1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1))
g_optimizer = optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
d_optimizer = optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
adversarial = nn.BCEWithLogitsLoss()
real_images = DataLoader(TensorDataset(torch.randn(iterations * batch_size, pixels)), batch_size)

printing_s = 0.0
started = time.perf_counter()
for (real,) in real_images:
    ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
    fake = generator(torch.randn(len(real), latent))

    d_optimizer.zero_grad()
    d_loss = adversarial(discriminator(real), ones)
    d_loss = d_loss + adversarial(discriminator(fake.detach()), zeros)
    d_loss.backward()
    d_optimizer.step()

    g_optimizer.zero_grad()
    g_loss = adversarial(discriminator(fake), ones)
    g_loss.backward()
    g_optimizer.step()

    if verbose:
        before = time.perf_counter()
        print(fake[0, :400])  # FAULT
        printing_s += time.perf_counter() - before
train_s = time.perf_counter() - started
print(json.dumps({"lost_s": printing_s, "train_s": train_s, "steps": iterations}))
