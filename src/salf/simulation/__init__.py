"""TODO."""

from salf.simulation.async_jobs import Flight as Flight
from salf.simulation.async_jobs import Flights as Flights
from salf.simulation.server_state import ServerState as ServerState
from salf.simulation.simulator import Simulation as Simulation
from salf.simulation.simulator import simulate as simulate
