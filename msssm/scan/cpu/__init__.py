"""The native kernels for CPUs: C++ sources, and the `torch.library` operators around them."""
