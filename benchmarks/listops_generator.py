"""Samples per second of the ListOps generator at Long Range Arena's parameters, on one core.

python -m benchmarks.listops_generator [--count 100000]
"""

import argparse
import resource
import time

from datamodules.listops import generate, generate_arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    count = parser.parse_args().count
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    data = generate_arrays(count, seed=0)
    arrays = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    few = max(1, count // 10)
    start = time.perf_counter()
    generate(few, seed=0)
    strings = time.perf_counter() - start
    print(
        f"arrays:  {count / arrays:10,.0f} samples/s ({count:,} in {arrays:.1f} s, "
        f"mean length {data.lengths.mean():.0f})"
    )
    print(f"strings: {few / strings:10,.0f} samples/s ({few:,} in {strings:.1f} s)")
    print(f"peak memory {peak:.0f} MiB, of which {before:.0f} MiB before the first sample")


if __name__ == "__main__":
    main()
