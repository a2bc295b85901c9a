"""PTB-XL's data path beside plain wfdb: converting the records once, and loading an epoch.

python -m benchmarks.ptbxl_data [--count 2000]

Both sides read the same generated records, in the page cache, on the cores that the process may use; three times each,
the median is printed. The wfdb loop is `wfdb.rdrecord` record by record, stacked into one float32 array.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import wfdb

from datamodules.ptbxl import PTBXLDataModule, generate
from datamodules.ptbxl.convert import convert
from datamodules.ptbxl.files import read_database


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = generate(root, count)
        table = read_database(source)
        names = [str(source / name) for name in table["filename_lr"]]

        def plain() -> None:
            np.stack([wfdb.rdrecord(name).p_signal.astype(np.float32) for name in names])

        numbers = iter(range(100))
        wfdb_seconds = _median(plain)
        convert_seconds = _median(lambda: convert(source, root / str(next(numbers)), 100, table))
        module = PTBXLDataModule(root=folder, batch_size=50)
        module.prepare_data()
        module.setup("fit")
        loader = module.train_dataloader()
        epoch_seconds = _median(lambda: [batch.x for batch in loader])
        share = len(module.records("train")) / count
    print(f"wfdb loop:   {wfdb_seconds:7.3f} s for {count} records")
    print(
        f"conversion:  {convert_seconds:7.3f} s, checksums included: {wfdb_seconds / convert_seconds:.1f} times faster"
    )
    print(
        f"epoch:       {epoch_seconds:7.3f} s for the {share:.0%} of training, from the map to standardised batches: "
        f"{share * wfdb_seconds / epoch_seconds:.0f} times faster than wfdb for as many"
    )


def _median(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
