"""Experiments on a virtual clock: a generator of records, for methods with rounds and for asynchronous ones.

Clients train in this process, but the time that they take comes from a device model. `SimulatedFederation` is the
set-up of a run, `Sampler` draws each round, `Evaluator` tests the global model, and `Simulation` loops over the rounds.
"""

from salf.simulation.server_state import ActiveJob as ActiveJob, ActiveJobs as ActiveJobs, ServerState as ServerState
from salf.simulation.simulator import Simulation as Simulation, simulate as simulate, with_method as with_method
