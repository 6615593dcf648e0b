"""The server's optimizer: adaptive federated optimization.

Reddi et al., "Adaptive federated optimization" (arXiv 2003.00295), algorithm 2: the aggregate is a pseudo-gradient for
an optimizer on the server.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

# By parameter: the first moment "m" and, of adam and yogi, the second "v".
OptimizerState = Mapping[str, Mapping[str, Tensor]]
Fraction = Annotated[float, Field(ge=0, lt=1)]


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ServerOptimizer:
    """How the server moves the global model along Δ_t, the change that a synchronous method's rule gives.

    `"sgd"`: m_t = `momentum` · m_{t−1} + Δ_t, and the model moves by `lr` · m_t; the defaults are plain averaging.
    `"adam"` and `"yogi"`: m_t = β₁ m_{t−1} + (1 − β₁) Δ_t, v_t = β₂ v_{t−1} + (1 − β₂) Δ_t² for adam and
    v_t = v_{t−1} − (1 − β₂) Δ_t² sign(v_{t−1} − Δ_t²) for yogi, and the model moves by `lr` · m_t / (√v_t + `tau`),
    from v_{−1} = `tau`². The defaults of β and τ are those of the paper, which tunes `lr`, 0.1 and below.

    A layer without contributors keeps its values and its moments; buffers are averaged as usual.

    Attributes:
        optimizer: Which of the three optimizers.
        lr: The server's step size; 1 with "sgd" is plain averaging.
        momentum: ρ of "sgd", from 0 to below 1.
        beta1: β₁ of "adam" and "yogi".
        beta2: β₂ of "adam" and "yogi".
        tau: τ, the adaptivity of "adam" and "yogi": larger values make steps more alike.

    >>> ServerOptimizer().averages, ServerOptimizer(optimizer="adam", lr=0.1).averages
    (True, False)
    """

    optimizer: Literal["sgd", "adam", "yogi"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=1e30)] = 1.0
    momentum: Fraction = 0.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    tau: Annotated[float, Field(gt=0)] = 1e-3

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"server.momentum is {self.momentum}, an option of sgd; set server.beta1 in its place")

    @property
    def averages(self) -> bool:
        """Whether the global model is the aggregate itself."""
        return self.optimizer == "sgd" and self.lr == 1.0 and not self.momentum

    @torch.no_grad()
    def step(
        self,
        before: Mapping[str, Tensor],
        aggregate: Mapping[str, Tensor],
        moved: Collection[str],
        state: OptimizerState,
        aliases: Mapping[str, str] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], OptimizerState]:
        """Return the new global state and the optimizer's new state; the arguments do not change.

        Args:
            before: The global state before the round.
            aggregate: The global state that averaging gives.
            moved: The names of the parameters that some client sent.
            state: The optimizer's state after the previous round; empty in the first one.
            aliases: Maps further names of a tied parameter to the one in `moved`.
            held: By parameter, which of its elements some client sent, where not all; the others do not change.

        >>> server = ServerOptimizer(lr=0.5, momentum=0.9)
        >>> new, memory = server.step({"w": torch.zeros(1)}, {"w": torch.ones(1)}, ["w"], {})
        >>> new, _ = server.step(new, {"w": new["w"] + 1.0}, ["w"], memory)
        >>> round(new["w"].item(), 4)  # 0.5 · 1 + 0.5 · (0.9 + 1)
        1.45
        """
        if self.averages:
            return dict(aggregate), state
        new, remembered = dict(aggregate), dict(state)
        for name in moved:
            known = state.get(name) or self._first_moments(before[name])
            moments = self._moments(aggregate[name] - before[name], known)
            scale = 1.0 if self.optimizer == "sgd" else moments["v"].sqrt() + self.tau
            new[name] = before[name] + self.lr * moments["m"] / scale
            own = (held or {}).get(name)
            if own is not None:
                new[name] = torch.where(own, new[name], before[name])
                moments = {moment: torch.where(own, value, known[moment]) for moment, value in moments.items()}
            remembered[name] = moments
        new |= {alias: new[name] for alias, name in (aliases or {}).items() if name in moved}
        return new, remembered

    def _first_moments(self, like: Tensor) -> dict[str, Tensor]:
        """Return the moments of a parameter before its first change."""
        first = {"m": torch.zeros_like(like)}
        return first if self.optimizer == "sgd" else {**first, "v": torch.full_like(like, self.tau**2)}

    def _moments(self, change: Tensor, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the moments after a change."""
        if self.optimizer == "sgd":
            return {"m": self.momentum * known["m"] + change}
        square, second = change.square(), known["v"]
        adam = self.optimizer == "adam"
        towards = square - second if adam else square * torch.sign(square - second)
        return {"m": self.beta1 * known["m"] + (1 - self.beta1) * change, "v": second + (1 - self.beta2) * towards}
