"""A small GAN on the digits: two models, two optimizers, two updates a batch."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--latent", type=int, default=32)
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    loader = DataLoader(TensorDataset(digits), batch_size=args.batch_size, shuffle=True)
    generator = nn.Sequential(
        nn.Linear(args.latent, 256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 64),
        nn.Tanh(),
    )
    critic = nn.Sequential(
        nn.Linear(64, 256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 1),
    )
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    iterations = 0
    for epoch in range(args.epochs):
        for (real,) in loader:
            fake = generator(torch.randn(len(real), args.latent))
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)

            critic_optimizer.zero_grad()
            loss_real = criterion(critic(real), ones)
            loss_real.backward()
            loss_fake = criterion(critic(fake.detach()), zeros)
            loss_fake.backward()
            critic_optimizer.step()

            generator_optimizer.zero_grad()
            loss_generator = criterion(critic(fake), ones)
            loss_generator.backward()
            generator_optimizer.step()
            iterations += 1
        critic_loss = (loss_real + loss_fake).item()
        print(f"epoch {epoch}: critic {critic_loss:.3f}, generator {loss_generator.item():.3f}")
    print(f"{iterations} iterations")


if __name__ == "__main__":
    main()
