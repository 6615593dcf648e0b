"""What travels between the server and a client, as Flower's records.

`instructions` holds what the server tells a client, `replies` what a client sends back, and `arrays` the conversion
between Flower's arrays and torch's tensors. Whatever is read from a node is checked before it is used.
"""

from salf.flower.wire.arrays import from_record as from_record, size_of as size_of, to_record as to_record
from salf.flower.wire.instructions import (
    CountedFrom as CountedFrom,
    TrainInstructions as TrainInstructions,
    layers_from_json as layers_from_json,
    layers_to_json as layers_to_json,
)
from salf.flower.wire.replies import (
    NUM_EXAMPLES as NUM_EXAMPLES,
    PREFIX as PREFIX,
    ClientReply as ClientReply,
    ClientReport as ClientReport,
    Metrics as Metrics,
    read_reply as read_reply,
    write_reply as write_reply,
)
