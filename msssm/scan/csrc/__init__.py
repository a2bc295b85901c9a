"""The native kernels in C++, and the loader of their library."""
