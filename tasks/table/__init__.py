"""Many runs of one question: tables, ablations, choices, sweeps."""
