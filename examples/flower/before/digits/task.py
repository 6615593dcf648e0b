"""The model, the data, the training loop and the evaluation."""

import time

import torch
from sklearn.datasets import load_digits
from torch import nn
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


def load_data(
    partition_id: int, num_partitions: int, batch_size: int, *, by_digit: bool
) -> tuple[DataLoader, DataLoader]:
    """Return one node's share of the digits, some of each digit or sorted by digit: to train and to evaluate."""
    shares = []
    for images, labels in _digits():
        if by_digit:
            own = labels.argsort(stable=True).tensor_split(num_partitions)[partition_id]
        else:
            own = torch.arange(len(labels))[partition_id::num_partitions]
        shares.append(TensorDataset(images[own], labels[own]))
    return DataLoader(shares[0], batch_size, shuffle=True), DataLoader(shares[1], batch_size)


def load_test_data() -> DataLoader:
    """Return the digits with which the nodes evaluate, and on which none of them trains."""
    return DataLoader(TensorDataset(*_digits()[1]), batch_size=TEST_EXAMPLES)


def train(model: nn.Module, loader: DataLoader, epochs: int, lr: float, device: torch.device) -> float:
    """Train for some epochs, and return the mean loss of the batches; 0 if there was none."""
    model.to(device)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / max(1, len(losses))


def test(model: nn.Module, loader: DataLoader, device: torch.device) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.to(device)
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in loader:
            scores = model(images.to(device)).cpu()
            loss += nn.functional.cross_entropy(scores, labels, reduction="sum").item()
            correct += (scores.argmax(dim=1) == labels).sum().item()
    return loss / len(loader.dataset), correct / len(loader.dataset)


def slow_down(model: nn.Module, seconds: float) -> None:
    """Simulate a slow device: make every layer take longer, forwards and backwards, by some seconds."""
    for layer in model.children():
        if seconds and next(layer.parameters(), None) is not None:
            layer.register_forward_hook(lambda *_: time.sleep(seconds))
            layer.weight.register_hook(lambda _: time.sleep(seconds))


def _digits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return images and labels of scikit-learn's digits, those to train on and those to test with."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(bunch.target)
    return (images[:-TEST_EXAMPLES], labels[:-TEST_EXAMPLES]), (images[-TEST_EXAMPLES:], labels[-TEST_EXAMPLES:])
