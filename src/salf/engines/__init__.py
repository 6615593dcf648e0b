"""Ways to compute what the clients of a round would convey; all give the same numbers."""

from salf.engines.plain import PlainEngine as PlainEngine
from salf.engines.task import ClientTask as ClientTask
from salf.engines.task import Optimisation as Optimisation
