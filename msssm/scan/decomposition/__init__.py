"""The wavelet decomposition as an operator: `torch` is the form in torch operators, `cpu` the native one."""
