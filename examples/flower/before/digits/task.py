"""The model, the data and the training loop."""

import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

TEST_EXAMPLES = 297


class Net(nn.Module):
    """A small CNN for images of 8 × 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 2 * 2, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return a score for each of the ten digits."""
        features = self.pool(torch.relu(self.conv1(images)))
        features = self.pool(torch.relu(self.conv2(features)))
        return self.fc2(torch.relu(self.fc1(features.flatten(1))))


def load_data(partition_id: int, num_partitions: int, batch_size: int, *, by_digit: bool) -> DataLoader:
    """Return one node's share of scikit-learn's digits: some of each digit, or sorted by digit."""
    images, labels = (part[:-TEST_EXAMPLES] for part in _digits())
    if by_digit:
        own = labels.argsort(stable=True).tensor_split(num_partitions)[partition_id]
    else:
        own = torch.arange(len(labels))[partition_id::num_partitions]
    return DataLoader(TensorDataset(images[own], labels[own]), batch_size, shuffle=True)


def train(model: nn.Module, optimizer: Optimizer, loader: DataLoader, epochs: int) -> None:
    """Train for some epochs."""
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def test(model: nn.Module) -> float:
    """Return the accuracy on the test digits, which no node has."""
    images, labels = (part[-TEST_EXAMPLES:] for part in _digits())
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


def slow_down(model: nn.Module, seconds: float) -> None:
    """Simulate a slow device: make every layer take longer, forwards and backwards, by some seconds."""
    for layer in model.children():
        if seconds and next(layer.parameters(), None) is not None:
            layer.register_forward_hook(lambda *_: time.sleep(seconds))
            layer.weight.register_hook(lambda _: time.sleep(seconds))


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(bunch.target)
