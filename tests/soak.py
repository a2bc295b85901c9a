"""`make soak`: a small run is killed, starved, corrupted and resumed again and again; it must end as if undisturbed.

    python -m tests.soak --minutes 120 --seed 0 --output results/soak

Each cycle is one training of a tiny ListOps recipe with faults drawn from a seeded schedule; when it completes, its
weights, metrics and curves are compared bit for bit with an uninterrupted run. report.json and report.md say what was
done, what was lost and what the user saw. Exit code 1 if any cycle ended otherwise.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tasks.checkpoint_io import DamagedCheckpointError, read_checkpoint
from tasks.record import provenance, write_json
from tests import runs
from tests.recipes import write_recipe

SETTINGS = {"plain": (), "workers": ("--data.num_workers=2",), "ema": ("--trainer.callbacks+=EMAWeightAveraging",)}
STEPS = 20


def _no_room(size: int) -> None:
    """A fault: there is room for `size` bytes of a checkpoint."""
    from tasks.checkpoint_io import DurableCheckpointIO

    original = DurableCheckpointIO.save_checkpoint

    def save_checkpoint(self: DurableCheckpointIO, *arguments: Any, **options: Any) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            original(self, *arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    DurableCheckpointIO.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


def _poison(step: int) -> None:
    """A fault: the loss of a step is not a number."""
    from tasks import ListOpsTask

    original = ListOpsTask.forward

    def forward(self: ListOpsTask, x: Any, lengths: Any = None) -> Any:
        logits = original(self, x, lengths)
        return logits * float("nan") if self.training and self.global_step >= step else logits

    ListOpsTask.forward = forward  # type: ignore[method-assign]


def _read_only() -> None:
    """A fault: nothing can be written beside a checkpoint; root may write in a folder without the permission."""
    import errno

    from tasks import checkpoint_io

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    checkpoint_io.os = runs.Patched(fsync=refuse)  # type: ignore[assignment]


def _timer(seconds: float, signum: int) -> None:
    """A fault: a signal after a time, wherever the process is."""
    import threading

    threading.Timer(seconds, os.kill, (os.getpid(), signum)).start()


class Soak:
    """The schedule, its runs and their record."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder = random.Random(seed), folder
        self.recipe = write_recipe(folder)
        self.counts: dict[str, dict[str, Any]] = defaultdict(
            lambda: {"times": 0, "steps_lost": [], "exit_codes": set(), "seen": "", "seconds": []}
        )
        self.failures: list[str] = []
        self.completed = 0
        self.whole: dict[str, Path] = {}

    def faults(self, progress: int) -> dict[str, tuple[Callable[[], None] | None, set[int]]]:
        """Name -> what is planted in the process, and the exit codes that it may end with (0: it got to its end)."""
        draw = self.random
        step, seconds = draw.randrange(min(progress, STEPS - 1), STEPS), draw.uniform(0.5, 6)
        writing = partial(runs.kill_while_writing, draw.randrange(1, 5), draw.choice(["write", "rename", "written"]))
        past_the_last = {0} if progress >= STEPS - 1 else set()
        faults: dict[str, tuple[Callable[[], None] | None, set[int]]] = {
            "SIGKILL at a step": (partial(runs.kill_at, step), {-9}),
            "SIGKILL at any time": (partial(_timer, seconds, signal.SIGKILL), {-9, 0}),
            "SIGKILL in validation": (partial(runs.kill_in_validation, (10, 20)), {-9}),
            "SIGKILL while writing": (writing, {-9, 0}),
            "SIGTERM at a step": (partial(runs.kill_at, step, signal.SIGTERM), {143}),
            "SIGTERM at any time": (partial(_timer, seconds, signal.SIGTERM), {143, -15, 0}),
            "SIGUSR1 at a step": (partial(runs.kill_at, step, signal.SIGUSR1), {138}),
            "SIGINT at a step": (partial(runs.kill_at, step, signal.SIGINT), {130}),
            "disk full": (partial(_no_room, draw.randrange(200, 30_000)), {2}),
            "read-only folder": (_read_only, {2}),
            "NaN in the loss": (partial(_poison, step), {2}),
            "last.ckpt corrupted": (None, {0}),
        }
        return {name: (fault, codes | past_the_last) for name, (fault, codes) in faults.items()}

    def fail(self, message: str) -> None:
        print(message, flush=True)
        self.failures.append(message)

    def cycle(self, setting: str) -> None:
        """One training, interrupted up to five times; its end is compared."""
        run_dir, log = self.folder / "cut", self.folder / "log"
        shutil.rmtree(run_dir, ignore_errors=True)
        command = ["fit", "--config", str(self.recipe), *SETTINGS[setting], f"--run_dir={run_dir}"]
        history = []
        for _ in range(self.random.randrange(1, 6)):
            before = self._progress(run_dir)
            faults = self.faults(before)
            name = self.random.choice(sorted(faults))
            fault, codes = faults[name]
            if name == "last.ckpt corrupted":
                if not self._corrupt(run_dir / "checkpoints/last.ckpt"):
                    continue
                fault, codes = partial(runs.kill_at, STEPS - 1), {-9, 0}  # and go on for a while
            history.append(name)
            code, seen, seconds = self._run(command, log, fault)
            record = self.counts[name]
            record["times"] += 1
            record["exit_codes"].add(code)
            record["seen"] = seen or record["seen"]
            record["seconds"].append(round(seconds, 2))
            after = self._progress(run_dir)
            record["steps_lost"].append(max(0, before - after))
            if code not in codes or (code == 0 and not (run_dir / "metrics.json").exists()):
                self.fail(f"{setting}: {' > '.join(history)}: exit code {code}\n{log.read_text()[-1500:]}")
            if after < before and name != "last.ckpt corrupted":
                self.fail(f"{setting}: {' > '.join(history)}: fell from step {before} to {after}")
            if (run_dir / "metrics.json").exists():
                break
        if not (run_dir / "metrics.json").exists():
            code, _, _ = self._run(command, log, None)
            if code != 0:
                self.fail(f"{setting}: {' > '.join(history)}: cannot go on\n{log.read_text()[-1500:]}")
                return
        try:
            runs.assert_same(run_dir, self.uninterrupted(setting))
            self.completed += 1
        except AssertionError as error:
            self.fail(f"{setting}: {' > '.join(history)}: {str(error)[:1000]}")

    def uninterrupted(self, setting: str) -> Path:
        if setting not in self.whole:
            self.whole[setting] = self.folder / f"whole-{setting}"
            command = ["fit", "--config", str(self.recipe), *SETTINGS[setting], f"--run_dir={self.whole[setting]}"]
            if runs.run(command, self.folder / "log") != 0:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
        return self.whole[setting]

    def _run(self, command: list[str], log: Path, fault: Callable[[], None] | None) -> tuple[int, str, float]:
        log.unlink(missing_ok=True)
        start = time.monotonic()
        code = runs.run(command, log, fault, timeout=300)
        said = [line for line in log.read_text().splitlines() if line.startswith("msssm: ")] if log.exists() else []
        return code, said[-1].replace(str(self.folder), "...") if said else "", time.monotonic() - start

    def _corrupt(self, path: Path) -> bool:
        if not path.exists():
            return False
        content = bytearray(path.read_bytes())
        where = self.random.randrange(len(content))
        if self.random.random() < 0.5:
            content = content[:where]
        else:
            content[where] ^= 0xFF
        path.write_bytes(content)
        return True

    @staticmethod
    def _progress(run_dir: Path) -> int:
        """Steps that a run would go on from."""
        steps = [0]
        for path in (run_dir / "checkpoints").glob("*.ckpt"):
            try:
                steps.append(read_checkpoint(path)["global_step"])
            except DamagedCheckpointError:
                continue
        return max(steps)


def _usage() -> tuple[float, int]:
    """MiB that are resident, and open descriptors, of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20, len(os.listdir("/proc/self/fd"))


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        f"# Soak: {report['minutes']:.1f} minutes, seed {report['seed']}",
        "",
        f"{report['cycles']} trainings, {report['identical']} of them identical to the bit with an uninterrupted one, "
        f"{len(report['failures'])} failures. Of the soak itself: memory {report['memory_mib'][0]:.0f} -> "
        f"{report['memory_mib'][1]:.0f} MiB, descriptors {report['descriptors'][0]} -> {report['descriptors'][1]}.",
        "",
        "| fault | times | steps fewer to go on from | exit codes | what the user saw last |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for name, record in sorted(report["faults"].items()):
        codes = ", ".join(map(str, record["exit_codes"]))
        seen = record["seen"].replace("|", "/") or "nothing"
        lines.append(f"| {name} | {record['times']} | {max(record['steps_lost'])} | {codes} | {seen} |")
    return "\n".join([*lines, "", *(f"```\n{failure}\n```" for failure in report["failures"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/soak"))
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options.seed, Path(folder))
        for setting in SETTINGS:
            soak.uninterrupted(setting)
        memory, descriptors = _usage()
        cycles = 0
        while time.monotonic() - start < 60 * options.minutes:
            soak.cycle(soak.random.choice(sorted(SETTINGS)))
            cycles += 1
            print(
                f"{(time.monotonic() - start) / 60:6.1f} min  {cycles} trainings  {len(soak.failures)} failures",
                flush=True,
            )
        memory_after, descriptors_after = _usage()
    if descriptors_after > descriptors + 4:
        soak.fail(f"descriptors grew from {descriptors} to {descriptors_after}")
    if memory_after > 1.3 * memory + 100:
        soak.fail(f"memory grew from {memory:.0f} to {memory_after:.0f} MiB")
    report = {
        "minutes": (time.monotonic() - start) / 60,
        "seed": options.seed,
        "cycles": cycles,
        "identical": soak.completed,
        "faults": {name: {**each, "exit_codes": sorted(each["exit_codes"])} for name, each in soak.counts.items()},
        "memory_mib": [memory, memory_after],
        "descriptors": [descriptors, descriptors_after],
        "failures": soak.failures,
        **provenance(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "report.json", report)
    (options.output / "report.md").write_text(_markdown(report))
    print((options.output / "report.md").read_text())
    raise SystemExit(bool(soak.failures))


if __name__ == "__main__":
    main()
