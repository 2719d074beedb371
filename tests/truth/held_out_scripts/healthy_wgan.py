"""A Wasserstein GAN: the critic learns in every step, the generator in every third one."""

import json
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(97)
STEPS, BATCH, EVERY = 150, 64, 3
generator = nn.Sequential(nn.Linear(32, 400), nn.ReLU(), nn.Linear(400, 256))
critic = nn.Sequential(nn.Linear(256, 1300), nn.ReLU(), nn.Linear(1300, 800), nn.ReLU())
critic.append(nn.Linear(800, 1))
generator_optimizer = torch.optim.RMSprop(generator.parameters(), lr=5e-5)
critic_optimizer = torch.optim.RMSprop(critic.parameters(), lr=5e-5)

begun = time.perf_counter()
loader = DataLoader(TensorDataset(torch.randn(STEPS * BATCH, 256)), batch_size=BATCH)
for step, (real,) in enumerate(loader, 1):
    critic_optimizer.zero_grad()
    fake = generator(torch.randn(BATCH, 32))
    critic_loss = critic(fake.detach()).mean() - critic(real).mean()
    critic_loss.backward()
    critic_optimizer.step()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.clamp_(-0.01, 0.01)
    if step % EVERY == 0:
        generator_optimizer.zero_grad()
        generator_loss = -critic(fake).mean()
        generator_loss.backward()
        generator_optimizer.step()
    if step % 50 == 0:
        print(f"[{step}/{STEPS}] {critic_loss.item():.5f} {generator_loss.item():.5f}")
train_s = time.perf_counter() - begun
print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": STEPS}))
