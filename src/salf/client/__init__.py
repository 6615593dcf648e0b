"""TODO."""

from salf.client.deadline_block import Deadline as Deadline
from salf.client.deadline_block import Scaler as Scaler
from salf.client.deadline_block import deadline as deadline
from salf.client.deadline_block import truncated_gradients as truncated_gradients
from salf.client.work import Work as Work
