"""Device models: how long devices take, on the virtual clock. No torch, no real clock, no state.

A device model draws, for the clients of one round, when each layer of each local step is complete and sent. A deadline
is then compared with these times. All arrays over layers run from input to output; backpropagation completes the last
layer first.

`DEVICES` holds every device model by its kind; `salf.register` and installed packages add theirs.
"""

from typing import Annotated

from salf.devices.cohort import Cohort as Cohort, CohortBatch as CohortBatch
from salf.devices.depths import (
    ExponentialLayers as ExponentialLayers,
    GradedSpeeds as GradedSpeeds,
    UniformDepthDevices as UniformDepthDevices,
)
from salf.devices.physical import Physical as Physical
from salf.devices.workload import CompletionTimes as CompletionTimes, Devices as Devices, Workload as Workload
from salf.registry import Choice, Registry

_BUILT_IN = (UniformDepthDevices, GradedSpeeds, ExponentialLayers, Physical)
DEVICES: Registry[Devices] = Registry((Devices,), _BUILT_IN, what="device model", tag="kind", group="salf.devices")
AnyDevices = Annotated[Devices, Choice(DEVICES)]
