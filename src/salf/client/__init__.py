"""The real deadline of a client: train in an ordinary loop, stop in time, and keep the layers that are finished.

`deadline` watches a training loop through hooks, leaves it when its time is up, and returns `Work`, from which the
partial update is made. `truncated_gradients` runs backpropagation down to a given depth, without a clock.
"""

from salf.client.deadline_block import deadline as deadline
from salf.client.final_step import Scaler as Scaler
from salf.client.loop_watcher import Deadline as Deadline
from salf.client.suitability import truncated_gradients as truncated_gradients
from salf.client.work import Work as Work
