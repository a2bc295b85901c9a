"""What an installed wheel must have: kernels that agree with the reference, recipes and experiments by name."""

import subprocess
import sys

import torch

from msssm.scan import selective_scan
from msssm.scan.csrc.library import library

assert library() is not None, "the wheel has no compiled kernels"
torch.manual_seed(0)
u, delta = torch.randn(2, 50, 8), torch.rand(2, 50, 8)
A, B, C = -torch.rand(8, 4), torch.randn(2, 50, 4), torch.randn(2, 50, 4)
native, plain = (selective_scan(u, delta, A, B, C, backend=backend) for backend in ("cpu", "reference"))
error = (native - plain).abs().max() / plain.abs().max()
assert error < 64 * torch.finfo(torch.float32).eps, f"kernels and reference differ by {error:.1e}"

for name in ("listops", "quick/listops/mamba"):
    words = ["fit", "--config", name, "--print_config"]
    subprocess.run([sys.executable, "-m", "tasks.cli.main", *words], check=True, stdout=subprocess.DEVNULL)
print(f"kernels: {library()._name}")
