"""Network families as values.

Each describes an architecture and builds it for the shape of the data. `build` does so reproducibly.
"""

from salf.models.catalogue import Model as Model
from salf.models.catalogue import build as build
from salf.models.factory import Factory as Factory
from salf.models.factory import import_callable as import_callable
from salf.models.narrow import narrow as narrow
from salf.models.narrow import prefixes as prefixes
from salf.models.residual import ResidualNet as ResidualNet
from salf.models.sequential import Cnn as Cnn
from salf.models.sequential import Mlp as Mlp
from salf.models.sequential import Vgg as Vgg
from salf.models.transformer import Transformer as Transformer
