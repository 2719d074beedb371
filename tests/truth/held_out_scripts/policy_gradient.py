"""REINFORCE on many small games at once, without a DataLoader."""

import json
import sys
import time

import torch
from torch import nn


class Games:
    """Points on a line that have to be pushed to the middle."""

    def __init__(self, count, record):
        self.count = count
        self.record = record
        self.position = torch.zeros(count, 4)
        self.episode = []
        self.lost_s = 0.0

    def reset(self):
        self.position = torch.randn(self.count, 4)
        self.episode.clear()
        return self.position

    def step(self, action):
        push = (action.float() - 0.5).unsqueeze(1)
        self.position = self.position * 0.98 + push * 0.1
        reward = -self.position.abs().sum(dim=1)
        if self.record:
            begun = time.perf_counter()
            self.episode.append([x.item() for x in self.position.flatten()])  # FAULT
            self.lost_s += time.perf_counter() - begun
        return self.position, reward


class Policy(nn.Module):
    def __init__(self, hidden=512):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.logits = nn.Linear(hidden, 2)

    def forward(self, observation):
        return self.logits(self.body(observation))


def play(games, policy, length):
    """Log-probabilities and rewards of one episode of each game."""
    observation = games.reset()
    log_probabilities, rewards = [], []
    for _ in range(length):
        choice = torch.distributions.Categorical(logits=policy(observation))
        action = choice.sample()
        observation, reward = games.step(action)
        log_probabilities.append(choice.log_prob(action))
        rewards.append(reward)
    return torch.stack(log_probabilities), torch.stack(rewards)


def main():
    torch.manual_seed(23)
    games = Games(count=96, record=sys.argv[1] == "fault")
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-4)
    episodes = 300
    begun = time.perf_counter()
    for _ in range(episodes):
        log_probabilities, rewards = play(games, policy, length=8)
        returns = rewards.flip(0).cumsum(0).flip(0)
        advantage = (returns - returns.mean()) / (returns.std() + 1e-6)
        loss = -(log_probabilities * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": games.lost_s, "train_s": train_s, "steps": episodes}))


if __name__ == "__main__":
    main()
