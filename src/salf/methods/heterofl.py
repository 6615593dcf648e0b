"""HeteroFL: stragglers train a narrower model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from salf.devices import CompletionTimes
from salf.methods.method import DeadlineMethod, Submodels
from salf.methods.schedules import RoundSchedule, largest_workloads_by
from salf.values import validated

Width = Annotated[float, Field(gt=0, le=1)]


@validated
class HeteroFL(DeadlineMethod):
    """HeteroFL (Diao, Ding and Tarokh, arXiv 2010.01264): stragglers train a narrower model.

    Each client trains the widest sub-model that it finishes by the deadline. A sub-model has the first ⌈width · n⌉ of
    the n channels of each hidden layer; `widths` are the paper's levels a to e. In the paper a client's level is fixed
    or random. Here each client knows its speed in this round, which favours the method. A client that is too slow for
    the narrowest sub-model sends nothing. Each element w_e of a parameter becomes Σ_{u ∋ e} w_{u,e} / |{u ∋ e}|, the
    mean over the clients whose sub-model holds it (the paper's algorithm 1). An element that no client trained stays.

    `scaler`: in training, a sub-model multiplies the outputs of its hidden layers by 1/width (the paper's scaler).
    `mask_labels`: a client's loss sets the scores of classes without examples to 0, and the client does not change
    their rows of the last layer (the paper's masking trick). BatchNorm is static: it keeps no running statistics in
    training, and before each test they are computed over all clients' training examples. The model must be a plain
    chain of layers: mlp, cnn or vgg. `deadline` is in seconds; the default is the usual time of the experiment's
    devices.
    """

    name: Literal["heterofl"] = "heterofl"
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    scaler: bool = True
    mask_labels: bool = True

    def __post_init__(self) -> None:
        """Check the order of the widths."""
        if any(wider <= narrower for wider, narrower in pairwise(self.widths)):
            raise ValueError(f"method.widths is {list(self.widths)}; write them from the widest to the narrowest")

    @property
    def submodels(self) -> Submodels:
        """The sub-models of the paper's levels."""
        return Submodels(self.widths, self.scaler, self.mask_labels)

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Give each client the widest sub-model in time; `options` go from the narrowest to the widest."""
        return largest_workloads_by(options, self.deadline_seconds(usual_seconds))
