"""msssm: the multi-scale state space model (arXiv 2512.23824) in PyTorch."""

from importlib.metadata import version

from msssm.backbone import Backbone
from msssm.bidirectional import Bidirectional
from msssm.classifier import SequenceClassifier
from msssm.image import PatchEmbedding
from msssm.layer import SequenceLayer
from msssm.multiscale import MultiScaleSSM
from msssm.param_groups import param_groups
from msssm.streaming import StreamingClassifier

__version__ = version("msssm")
__all__ = [
    "Backbone",
    "Bidirectional",
    "MultiScaleSSM",
    "PatchEmbedding",
    "SequenceClassifier",
    "SequenceLayer",
    "StreamingClassifier",
    "__version__",
    "param_groups",
]
