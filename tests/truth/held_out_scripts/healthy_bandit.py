"""A contextual bandit: no DataLoader, and its world is a few operations on tensors."""

import json
import time

import torch
from torch import nn


class World:
    def __init__(self, arms, width):
        self.taste = torch.randn(width, arms)

    def contexts(self, count):
        return torch.randn(count, len(self.taste))

    def reward(self, context, arm):
        return (context @ self.taste).gather(1, arm.unsqueeze(1)).squeeze(1)


def main():
    torch.manual_seed(107)
    rounds = 120
    world = World(arms=10, width=64)
    agent = nn.Sequential(
        nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    baseline = torch.zeros(())
    begun = time.perf_counter()
    for _ in range(rounds):
        context = world.contexts(128)
        policy = torch.distributions.Categorical(logits=agent(context))
        arm = policy.sample()
        reward = world.reward(context, arm)
        baseline = 0.9 * baseline + 0.1 * reward.mean()
        loss = -(policy.log_prob(arm) * (reward - baseline)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": rounds}))


if __name__ == "__main__":
    main()
