"""TODO."""

from salf.simulation.async_jobs import ActiveJob as ActiveJob
from salf.simulation.async_jobs import ActiveJobs as ActiveJobs
from salf.simulation.server_state import ServerState as ServerState
from salf.simulation.simulator import Simulation as Simulation
from salf.simulation.simulator import simulate as simulate
