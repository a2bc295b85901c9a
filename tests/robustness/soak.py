"""`make soak`: a small run is killed, starved, corrupted and resumed again and again; it must end as if undisturbed.

    python -m tests.robustness.soak --minutes 120 --seed 0 --output results/soak

Each cycle is one training with faults of `soak_faults` from a seeded schedule, the rarest so far first; when it
completes, its weights, metrics and curves are compared bit for bit with an uninterrupted run. report.json and report.md
are written after every cycle, and say what was done, what was lost, what the user saw, and how memory grew. Exit code 1
if anything was otherwise than it must be. Ctrl-C and SIGTERM end it after what it has done.
"""

import argparse
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tasks.run.checkpoint_io import DamagedCheckpointError, read_checkpoint
from tests.robustness import soak_faults
from tests.robustness.soak_faults import Fault
from tests.robustness.soak_report import Record, Report
from tests.support import runs
from tests.support.recipes import write_recipe

ROOT = Path(__file__).parents[2]
# The model and the options of a real recipe, on as little data as the others have.
FULL_SIZE = [
    "--data.train_size=1000",
    "--data.val_size=100",
    "--data.test_size=100",
    "--data.eval_batch_size=50",
    "--trainer.val_check_interval=0.5",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
]
SHARES = {"plain": 4, "workers": 2, "ema": 2, "full size": 2}


class Soak:
    """The schedule, its runs and their record."""

    def __init__(self, seed: int, folder: Path, report: Report) -> None:
        self.random, self.folder, self.report = random.Random(seed), folder, report
        tiny = ["fit", "--config", str(write_recipe(folder))]
        full = ["fit", "--config", "quick/listops/msssm_s6", f"--data.root={folder}/full"]
        self.commands = {
            "plain": tiny,
            "workers": [*tiny, "--data.num_workers=2"],
            "ema": [*tiny, "--trainer.callbacks+=EMAWeightAveraging"],
            "full size": [*full, *FULL_SIZE],
        }
        self.long = [
            *tiny,
            f"--data.root={folder}/long",
            "--data.train_size=2000",
            "--trainer.max_epochs=-1",
            "--trainer.log_every_n_steps=50",
        ]
        self.log = folder / "log"
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Starts what starts processes, and makes the uninterrupted run of each setting."""
        self._run(["--version"], None)
        for setting in self.commands:
            code, _, self.seconds[setting] = self._fit(setting, self.folder / f"whole {setting}", None)
            if code != 0:
                raise RuntimeError(self.log.read_text()[-2000:])

    def cycle(self) -> None:
        """One training, interrupted up to five times; its end is compared."""
        setting = self.random.choices(list(SHARES), list(SHARES.values()))[0]
        run_dir = self.folder / f"cycle {self.report.cycles}"
        history = [setting]
        for _ in range(self.random.randrange(1, 6)):
            self._inject(setting, run_dir, history)
            if (run_dir / "metrics.json").exists():
                break
        else:
            code, lines, _ = self._fit(setting, run_dir, None)
            if code != 0:
                self.report.fail(f"{' > '.join(history)}: cannot go on: {code}, {lines}\n{self._end_of_log()}")
        self.report.cycles += 1
        self._compare(setting, run_dir, " > ".join(history))

    def undisturbed(self) -> None:
        """One more run of the first setting without a fault: the peak of its memory."""
        run_dir, memory = self.folder / f"undisturbed {len(self.report.peaks)}", self.folder / "memory"
        memory.unlink(missing_ok=True)
        self._fit("plain", run_dir, partial(soak_faults.watch_memory, memory, frozenset()))
        self.report.peaks.append((time.monotonic(), float(memory.read_text().split()[2])))
        self._compare("plain", run_dir, "undisturbed")

    def long_training(self, steps: int) -> None:
        """One training of many steps: its memory at each twentieth of them."""
        memory, marks = self.folder / "memory", frozenset(range(0, steps, steps // 20))
        memory.unlink(missing_ok=True)
        command = [
            *self.long,
            f"--trainer.max_steps={steps}",
            f"--run_dir={self.folder}/long training {time.monotonic()}",
        ]
        code, lines, _ = self._run(command, partial(soak_faults.watch_memory, memory, marks), timeout=1800)
        if code != 0:
            self.report.fail(f"the long training: {code}, {lines}\n{self._end_of_log()}")
        words = [line.split() for line in memory.read_text().splitlines()]
        self.report.long.append([(float(when), float(mib)) for step, when, mib in words if step != "peak"])

    def _inject(self, setting: str, run_dir: Path, history: list[str]) -> None:
        data = self.folder / ("full" if setting == "full size" else "data")
        had = _steps(run_dir)
        best = had.get(run_dir / "checkpoints/best.ckpt") or 0
        spare = max([steps or 0 for path, steps in had.items() if ".previous" in path.name], default=0)
        faults = soak_faults.drawn(self.random, _progress(run_dir), spare, best, 1.2 * self.seconds[setting], data)
        times = {name: record.drawn for name, record in self.report.faults.items()}
        name = min(faults, key=lambda name: (times.get(name, 0), self.random.random()))
        fault = faults[name]
        history.append(name)

        must_say = fault.damage(run_dir) if fault.damage is not None else None
        kept = _progress(run_dir)
        damaged = [path for path, steps in _steps(run_dir).items() if steps is None]
        untouched = [steps for path, steps in had.items() if path not in damaged and steps is not None]

        notes = self.folder / "notes"
        notes.unlink(missing_ok=True)
        code, lines, _ = self._fit(setting, run_dir, partial(_noted, notes, fault.plant))
        ended = time.monotonic()
        done, signalled = soak_faults.noted(notes)
        now = _progress(run_dir)
        hit = code != 0 or fault.code == 0

        record = self.report.faults.setdefault(name, Record())
        record.drawn += 1
        record.times += hit
        record.codes.add(code)
        record.seen = lines[-1] if lines else record.seen
        record.saved_steps_lost.append(max(0, max(untouched, default=0) - now))
        record.steps_again.append(max(0, done - now))
        if signalled is not None and code > 0:
            record.seconds.append((setting, ended - signalled))

        wrong = []
        if code not in {fault.code, *fault.other_codes} | (set() if fault.sure else {0}):
            wrong.append(f"exit code {code}")
        complete = (run_dir / "metrics.json").exists()
        if complete != (code == 0) and not (complete and not fault.sure):  # which may hit behind the end
            wrong.append("metrics.json is not the mark of exit code 0")
        if not re.fullmatch(_expected(fault, code, damaged, kept), "\n".join(lines)):
            wrong.append(f"said {lines}, expected {_expected(fault, code, damaged, kept)}")
        if must_say is not None and not re.search(must_say, self.log.read_text()):
            wrong.append(f"did not say {must_say}")
        if now < max(untouched, default=0):
            wrong.append(f"fell from step {max(untouched)} to {now}")
        if done - now > fault.again:
            wrong.append(f"{done} steps done, {now} kept")
        if wrong:
            self.report.fail(f"{' > '.join(history)}: {'; '.join(wrong)}\n{self._end_of_log()}")

    def _compare(self, setting: str, run_dir: Path, history: str) -> None:
        try:
            runs.assert_same(run_dir, self.folder / f"whole {setting}")
            self.report.identical += 1
        except (AssertionError, OSError) as error:
            self.report.fail(f"{history}: {str(error)[:1000]}")

    def _fit(self, setting: str, run_dir: Path, fault: Callable[[], None] | None) -> tuple[int, list[str], float]:
        return self._run([*self.commands[setting], f"--run_dir={run_dir}"], fault)

    def _run(
        self, command: list[str], fault: Callable[[], None] | None, timeout: float = 300
    ) -> tuple[int, list[str], float]:
        """Exit code, what the command said, and its seconds."""
        self.log.unlink(missing_ok=True)
        start = time.monotonic()
        code = runs.run(command, self.log, fault, timeout)
        said = [line for line in self.log.read_text().splitlines() if line.startswith("msssm: ")]
        return (
            code,
            [line.removeprefix("msssm: ").replace(str(self.folder), "...") for line in said],
            time.monotonic() - start,
        )

    def _end_of_log(self) -> str:
        return self.log.read_text()[-1500:]


def _noted(notes: Path, plant: Callable[[], None] | None) -> None:
    soak_faults.note(notes)
    if plant is not None:
        plant()


def _expected(fault: Fault, code: int, damaged: list[Path], kept: int) -> str:
    """Pattern of all that a run says: what it goes on from, and why it ends."""
    lines = [rf".*/{re.escape(path.name)} cannot be read \(\w+\); continuing without it" for path in damaged]
    lines += [rf"fit from \S.*/checkpoints/\S+\.ckpt, step {kept}"] if kept else []
    says = [fault.says] if code > 0 else []
    if fault.sure:
        return "\n".join([*lines, *says])
    before = "\n".join(lines)
    return f"(?:{before})?\n?{''.join(says)}"  # it may come before the run has looked


def _steps(run_dir: Path) -> dict[Path, int | None]:
    """Steps of each checkpoint, None for a damaged one, in the order in which a run looks at them."""
    steps: dict[Path, int | None] = {}
    for name in ("last", "last.previous", "best", "best.previous"):
        path = run_dir / f"checkpoints/{name}.ckpt"
        if path.exists():
            try:
                steps[path] = read_checkpoint(path)["global_step"]
            except DamagedCheckpointError:
                steps[path] = None
    return steps


def _progress(run_dir: Path) -> int:
    """Steps that a run would go on from."""
    return max((steps for steps in _steps(run_dir).values() if steps is not None), default=0)


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.soak")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/soak"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    report = Report(options.seed, options.output)
    steps = 10 * max(100, round(40 * options.minutes))
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options.seed, Path(folder), report)
        try:
            soak.prepare()
            soak.long_training(steps)
            deadline = report.start + 60 * options.minutes - (time.monotonic() - report.start)
            while time.monotonic() < deadline:
                if report.cycles % 5 == 0:
                    soak.undisturbed()
                soak.cycle()
                report.note()
            soak.long_training(steps)
        except KeyboardInterrupt:
            print("stopped; the report is of what has been done", flush=True)
        report.judge(options.minutes)
        report.write()
    print((options.output / "report.md").read_text())
    raise SystemExit(bool(report.failures))


if __name__ == "__main__":
    main()
