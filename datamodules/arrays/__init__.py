"""Anyone's own sequences: `.npy` files and a table, or arrays."""
