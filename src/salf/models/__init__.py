"""Network families as values.

Each describes an architecture and builds it for the shape of the data. `build` does so reproducibly.
"""

from salf.models.catalogue import Model as Model, build as build
from salf.models.factory import Factory as Factory, import_callable as import_callable
from salf.models.narrow import narrow as narrow, prefixes as prefixes
from salf.models.residual import ResidualNet as ResidualNet
from salf.models.sequential import Cnn as Cnn, Mlp as Mlp, Vgg as Vgg
from salf.models.transformer import Transformer as Transformer
