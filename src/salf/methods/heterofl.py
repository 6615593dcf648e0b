"""Giving each client a model as narrow as its time is short."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from salf.aggregation import Contributors, Rule
from salf.devices import CompletionTimes
from salf.methods.method import Submodels, SynchronousMethod
from salf.methods.schedules import RoundSchedule, largest_jobs_by
from salf.values import Positive, validated

Width = Annotated[float, Field(gt=0, le=1)]


@validated
class HeteroFL(SynchronousMethod):
    """HeteroFL (Diao, Ding and Tarokh, arXiv 2010.01264): stragglers train a narrower model.

    Each client is given the widest sub-model of which it can do the whole job by the deadline: of each hidden layer the
    first ⌈width · n⌉ of n channels. `widths` are the paper's levels a to e. There a client's level is fixed or drawn at
    random; here each client knows its speed in this round, which is kinder. Who is too slow even for the narrowest
    conveys nothing. Each element w_e of a parameter becomes Σ_{u ∋ e} w_{u,e} / |{u ∋ e}|, the mean over the clients
    whose sub-model holds it (the paper's algorithm 1); one that nobody trained stays.

    `scaler`: in training, a sub-model multiplies what its hidden layers give by 1/width (the paper's scaler).
    `mask_labels`: in a client's loss the scores of classes that it holds no example of are 0, and it has no say in
    their rows of the last layer (its masking trick). BatchNorm is static: it keeps no running statistics in training;
    before each test those of the global model are computed over all clients' training examples. The model must be a
    plain chain of layers: mlp, cnn or vgg. `deadline` is in seconds; without one it is the usual time of the
    experiment's devices.
    """

    name: Literal["heterofl"] = "heterofl"
    deadline: Positive | None = None
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    scaler: bool = True
    mask_labels: bool = True

    def __post_init__(self) -> None:
        if any(wider <= narrower for wider, narrower in pairwise(self.widths)):
            raise ValueError(f"method.widths is {list(self.widths)}; write them from the widest to the narrowest")

    @property
    def submodels(self) -> Submodels:
        """The sub-models of the paper's levels."""
        return Submodels(self.widths, self.scaler, self.mask_labels)

    def schedule(self, options: Sequence[CompletionTimes], usual_seconds: float) -> RoundSchedule:
        """Give each client the widest sub-model in time; `options` go from the narrowest to the widest."""
        return largest_jobs_by(options, self.deadline or usual_seconds)

    @property
    def aggregation_rule(self) -> Rule:
        """The mean over those who trained the same sub-model on the same classes; these overlap element by element."""
        return Contributors(weight_by_examples=self.weight_by_examples)
