"""The idea in one file: the forward pass of MS-SSM (Karami et al. 2025, arXiv 2512.23824, section 3) in plain torch.

Split the sequence into bands, finest first; run one state space model per band; weight the bands anew at every step.
Written to be read, not to be fast. `msssm.MultiScaleSSM` computes the same and adds initial values, padding, streaming,
limits for extreme parameters, and kernels.

    layer = MultiScaleSSM(d_model=64, ssm="s6", mixer="input")
    ms_ssm(x, layer.state_dict(), ssm="s6", mixer="input")  # equals layer(x)

Shapes: B batch, L length, D channels, S levels, K filter taps, M = S + 2 bands, N states per band and channel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def ms_ssm(x: Tensor, weights: Weights, ssm: str = "s6", mixer: str = "input", discretization: str = "zoh") -> Tensor:
    """Computes the layer, z_t = sum_s E_t[s] y^s_t: x (B, L, D) -> z (B, L, D).

    Weights and options are those of a `MultiScaleSSM` whose other options are the paper's: no skip, one mixer head,
    filters for each level, Delta, B and C computed from the input, and the bands as inputs of the recurrences.
    """
    u_BLMD = decompose(x, weights["decomposition.low"], weights["decomposition.high"])
    delta, A, B, C = {"s6": s6, "s4": s4}[ssm](x, weights)
    y_BLMD = scan(u_BLMD, delta, A, B, C, discretization)
    return (mixer_weights(x, weights, mixer) * y_BLMD).sum(2)


def decompose(x: Tensor, phi: Tensor, psi: Tensor) -> Tensor:
    """Learned causal wavelet transform (section 3.1): x (B, L, D), filters (S, K, D) -> bands u (B, L, M, D).

        a^0 = x,   a^s[t] = sum_k a^{s-1}[t - 2^{s-1} k] phi^s[k],   d^s[t] = sum_k a^{s-1}[t - 2^{s-1} k] psi^s[k]

    The bands are x, the details d^1 .. d^S and the approximation a^S, none of them downsampled.
    """
    a, bands = x, [x]
    for s, (phi_KD, psi_KD) in enumerate(zip(phi, psi, strict=True), start=1):
        lagged = [F.pad(a, (0, 0, 2 ** (s - 1) * k, 0))[:, : x.shape[1]] for k in range(len(phi_KD))]
        a_BLKD = torch.stack(lagged, dim=2)
        bands.append((a_BLKD * psi_KD).sum(2))
        a = (a_BLKD * phi_KD).sum(2)
    return torch.stack([*bands, a], dim=2)


def s6(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Delta, A, B, C of selective models (section 3.2); each band has its own projections of the raw input x."""
    A_MDN = -weights["ssm.log_rate"].exp()
    W_MRD = weights["ssm.delta_weight"]  # the step size has Mamba's low rank R
    (M, _, N), R = A_MDN.shape, W_MRD.shape[1]
    projected = F.linear(x, weights["ssm.projection.weight"]).unflatten(-1, (M, R + 2 * N))
    low_BLMR, B_BLMN, C_BLMN = projected.split((R, N, N), dim=-1)
    delta_BLMD = F.softplus(torch.einsum("blmr,mrd->blmd", low_BLMR, W_MRD) + weights["ssm.delta_bias"])
    return delta_BLMD.unsqueeze(-1), A_MDN, B_BLMN.unsqueeze(3), C_BLMN.unsqueeze(3)


def s4(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Delta, A, B, C of time-invariant models (section 3.2); B is 1, since only its product with C matters."""
    delta_MD, A_MDN, C_MDN = weights["ssm.log_delta"].exp(), -weights["ssm.log_rate"].exp(), weights["ssm.C"]
    if "ssm.frequency" in weights:  # diagonal="complex": conjugate pairs, of which one is computed, y = 2 Re <C, h>
        A_MDN, C_MDN = torch.complex(A_MDN, weights["ssm.frequency"]), 2 * torch.view_as_complex(C_MDN)
    return delta_MD.unsqueeze(-1), A_MDN, torch.ones_like(A_MDN), C_MDN


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, discretization: str) -> Tensor:
    """Recurrences (section 3.2): u (B, L, M, D), the rest broadcast to (B, L, M, D, N) -> y (B, L, M, D).

        h_t = Abar h_{t-1} + Bbar u_t,   y_t = <C, h_t>,   Abar = exp(Delta A),   Bbar = (Abar - 1) / A B  or  Delta B

    The states start at 0.
    """
    Bbar = {"zoh": torch.expm1(delta * A) / A * B, "euler": delta * B}[discretization]
    Bu_BLMDN = Bbar * u.unsqueeze(-1)
    Abar_BLMDN = torch.exp(delta * A).expand_as(Bu_BLMDN)
    h, states = torch.zeros_like(Bu_BLMDN[:, 0]), []
    for Abar_t, Bu_t in zip(Abar_BLMDN.unbind(1), Bu_BLMDN.unbind(1), strict=True):
        h = Abar_t * h + Bu_t
        states.append(h)
    return (C * torch.stack(states, dim=1)).sum(-1).real


def mixer_weights(x: Tensor, weights: Weights, mixer: str) -> Tensor:
    """Mixer weights E, broadcast to (B, L, M, 1) (section 3.3): "input" is the paper's, the others are ablations."""
    if mixer in ("fixed", "sum"):
        return weights["mixer.weight"] if mixer == "fixed" else x.new_ones(1)
    E_BLM = F.linear(x, weights["mixer.projection.weight"], weights["mixer.projection.bias"])
    return {"input": E_BLM, "softmax": E_BLM.softmax(-1)}[mixer].unsqueeze(-1)
