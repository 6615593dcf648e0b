"""Loss and accuracy of a classifier on held-out data."""

import torch
from torch import Tensor, nn

_BATCH = 2048


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy, between 0 and 1, and the mean cross-entropy of `model` on labelled examples.

    The model is used in evaluation mode; each of its modules is left in the mode it was in.

    >>> evaluate(nn.Identity(), torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))[0]
    0.5
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    correct, total = 0, 0.0
    try:
        with torch.inference_mode():
            for start in range(0, len(labels), _BATCH):
                truth = labels[start : start + _BATCH]
                outputs = model(inputs[start : start + _BATCH])
                correct += int((outputs.argmax(dim=1) == truth).sum())
                total += float(nn.functional.cross_entropy(outputs, truth, reduction="sum"))
    finally:
        for module, training in modes.items():
            module.training = training
    return correct / len(labels), total / len(labels)
