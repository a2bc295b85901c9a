"""Speed and memory of msssm beside its peers and the floors of this machine; `benchmarks.report` says what is written.

python -m benchmarks [--quick] [--device cpu] [--only scan layer ...] [--threads 2]
"""

import argparse
from pathlib import Path

import torch

from benchmarks import layer, lti, model, report, scan
from benchmarks.floors import measure_floors

SECTIONS = {
    "scan": scan.run,
    "variants": lambda device, quick: [] if quick else scan.variants(device),
    "lti": lti.run,
    "layer": layer.run,
    "model": model.run,
}


def main(args: list[str] | None = None) -> None:
    """Runs the sections asked for, and prints what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset of about a minute")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("results/bench"), help="where to write")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    # TF32 would fail the check in float32, and a wrong scan must not hide behind it.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    floors = measure_floors(device)
    rows = []
    for name in options.only:
        print(f"benchmarks: {name}", flush=True)
        rows += SECTIONS[name](device, options.quick)
    # Other programs slow these methods by different factors: then no ratio means anything.
    later = measure_floors(device)
    drift = floors.drift(later)
    folder = report.write(rows, floors.best(later), device, options.results, drift)
    print((folder / "bench.md").read_text())
    print(f"written to {folder}: bench.json, bench.md")
    refused = [row for row in rows if row.note.startswith("REFUSED")]
    if refused:
        raise SystemExit(f"{len(refused)} results were wrong, and have no figures")


if __name__ == "__main__":
    main()
