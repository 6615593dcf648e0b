"""TODO."""

from salf.client.deadline import Deadline as Deadline
from salf.client.deadline import Scaler as Scaler
from salf.client.deadline import deadline as deadline
from salf.client.deadline import truncated_gradients as truncated_gradients
from salf.client.work import Work as Work
