"""Single-scale sequence layers under the same protocol, to compare with MS-SSM.

MS-SSM without its state space models is `MultiScaleSSM(ssm="none")`.
"""

from msssm.baselines.attention import CausalAttention
from msssm.baselines.mamba import Mamba
from msssm.baselines.multiresnet import MultiresConv
from msssm.baselines.s4d import S4D

__all__ = ["S4D", "CausalAttention", "Mamba", "MultiresConv"]
