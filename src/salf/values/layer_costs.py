"""What a layer costs to compute and to send."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCosts:
    """What one example costs: floating-point operations of the forward pass and of each layer's backward pass.

    `layer_bytes` is the size of what is sent for each layer. `passing` is what is left of each layer's backward
    pass where its weights are not trained, its input gradient; where it was not measured, half is taken to be left.
    """

    forward: float
    backward: tuple[float, ...]
    layer_bytes: tuple[int, ...]
    passing: tuple[float, ...] | None = None

    @property
    def num_layers(self) -> int:
        """The number of layers, L."""
        return len(self.backward)
