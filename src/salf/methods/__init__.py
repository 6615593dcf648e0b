"""The mechanisms against stragglers, each a frozen value whose fields are its hyper-parameters."""

from typing import Annotated

from pydantic import Field

from salf.methods.dropping import DropStragglers as DropStragglers
from salf.methods.layerwise import Salf as Salf
from salf.methods.method import Method as Method
from salf.methods.method import Schedule as Schedule
from salf.methods.method import Situation as Situation
from salf.methods.waiting import FedAvg as FedAvg

AnyMethod = Annotated[FedAvg | DropStragglers | Salf, Field(discriminator="name")]

# Every method by the name under which experiment files and the command line know it.
METHODS: dict[str, type[FedAvg] | type[DropStragglers] | type[Salf]] = {
    "fedavg": FedAvg,
    "drop": DropStragglers,
    "salf": Salf,
}
