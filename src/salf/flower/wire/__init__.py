"""What travels between the server and a client, as Flower's records.

`instructions` holds what the server tells a client, `replies` what a client sends back, and `arrays` the conversion
between Flower's arrays and torch's tensors. Whatever is read from a node is checked before it is used.
"""

from salf.flower.wire.arrays import from_record as from_record
from salf.flower.wire.arrays import size_of as size_of
from salf.flower.wire.arrays import to_record as to_record
from salf.flower.wire.instructions import CountedFrom as CountedFrom
from salf.flower.wire.instructions import TrainInstructions as TrainInstructions
from salf.flower.wire.instructions import layers_from_json as layers_from_json
from salf.flower.wire.instructions import layers_to_json as layers_to_json
from salf.flower.wire.replies import NUM_EXAMPLES as NUM_EXAMPLES
from salf.flower.wire.replies import PREFIX as PREFIX
from salf.flower.wire.replies import ClientReply as ClientReply
from salf.flower.wire.replies import ClientReport as ClientReport
from salf.flower.wire.replies import Metrics as Metrics
from salf.flower.wire.replies import read_reply as read_reply
from salf.flower.wire.replies import write_reply as write_reply
