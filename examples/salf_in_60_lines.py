"""SALF on one screen: plain PyTorch, with the symbols of the paper (arXiv 2403.18375).

In each round, U clients train the model w on their own data until a deadline. Backpropagation completes the layers from
the output, L, to the input, 1. Client u completes d_u of them and sends the changes Δ_u of these layers only. The
server moves layer l by the mean change of the clients U_l that sent it, divided by 1 − p_l with p_l = P(U_l is empty).
The mean step is then that of federated learning without stragglers.

    python examples/salf_in_60_lines.py
"""
# ruff: noqa: E741, N803, N806, PLC2401 - the symbols of the paper

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

L, U, ROUNDS, η = 4, 6, 300, 0.2  # layers, clients, rounds, step size
p = {l: ((L - l) / L) ** U for l in range(1, L + 1)}  # for depths d_u that are uniform on {1 … L}
Update = dict[int, list[Tensor]]  # maps l to the changes of that layer's parameters


def make_model() -> nn.Sequential:
    """Return a network of L layers for images of 8×8 pixels and 10 classes."""
    hidden = [nn.Sequential(nn.Linear(inputs, 32), nn.ReLU()) for inputs in (64, 32, 32)]
    return nn.Sequential(*hidden, nn.Sequential(nn.Linear(32, 10)))


def client(w: nn.Sequential, x: Tensor, y: Tensor, d_u: int) -> Update:
    """Take one step on a batch and return Δ_u: the changes of the last d_u layers."""
    w.zero_grad()
    inputs, outputs = [x.requires_grad_()], []
    for layer in w:  # the forward pass; each layer starts a graph of its own
        outputs.append(layer(inputs[-1]))
        inputs.append(outputs[-1].detach().requires_grad_())
    cross_entropy(inputs[L], y).backward()
    Δ_u: Update = {}
    for l in range(L, 0, -1):  # backpropagation
        if len(Δ_u) == d_u:  # the deadline: layers l, …, 1 are not reached
            break
        outputs[l - 1].backward(inputs[l].grad)
        Δ_u[l] = [-η * parameter.grad for parameter in w[l - 1].parameters()]
    return Δ_u


def server(w: nn.Sequential, Δ: list[Update], p: dict[int, float]) -> None:
    """Move each layer by the corrected mean over the clients that sent it."""
    for l in range(1, L + 1):
        U_l = [Δ_u[l] for Δ_u in Δ if l in Δ_u]
        for parameter, *changes in zip(w[l - 1].parameters(), *U_l, strict=False):
            if U_l:  # a layer that no client sent stays
                parameter.data += sum(changes) / len(U_l) / (1 - p[l])


def train(*, drop: bool = False) -> float:
    """Return the test accuracy with SALF, or with federated averaging that drops stragglers."""
    torch.manual_seed(0)
    pixels, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x, w = pixels.float() / 16, make_model()
    for _ in range(ROUNDS):
        d = torch.randint(1, L + 1, (U,)).tolist()  # how far each client gets
        batches = torch.randint(1500, (U, 32))
        Δ = [client(w, x[batch], y[batch], d_u) for batch, d_u in zip(batches, d, strict=True)]
        whole = [Δ_u for Δ_u in Δ if len(Δ_u) == L]
        server(w, whole if drop else Δ, dict.fromkeys(p, 0.0) if drop else p)
    return float((w(x[1500:]).argmax(dim=1) == y[1500:]).float().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)  # the matrices are too small to share
    print(f"accuracy after {ROUNDS} rounds: SALF {train():.1%}, stragglers dropped {train(drop=True):.1%}")
