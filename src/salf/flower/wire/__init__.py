"""TODO."""

from salf.flower.wire.arrays import from_record as from_record
from salf.flower.wire.arrays import to_record as to_record
from salf.flower.wire.instructions import CountedFrom as CountedFrom
from salf.flower.wire.instructions import TrainInstructions as TrainInstructions
from salf.flower.wire.instructions import layers_from_json as layers_from_json
from salf.flower.wire.instructions import layers_to_json as layers_to_json
from salf.flower.wire.replies import NUM_EXAMPLES as NUM_EXAMPLES
from salf.flower.wire.replies import PREFIX as PREFIX
from salf.flower.wire.replies import ClientReport as ClientReport
from salf.flower.wire.replies import Reply as Reply
from salf.flower.wire.replies import one_line as one_line
from salf.flower.wire.replies import read_reply as read_reply
from salf.flower.wire.replies import write_reply as write_reply
