"""What `tests.robustness.soak` has done so far, as report.json and report.md."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tasks.run.provenance import provenance, write_json
from tests.robustness.soak_faults import resident_mib

Samples = list[tuple[float, float]]  # seconds, MiB
MOST_GROWTH = 1.0  # percent an hour
MOST_SECONDS = 10.0  # from a signal to the end of the process, with its checkpoint


@dataclass
class Record:
    """Of one kind of fault."""

    drawn: int = 0  # times it was planted
    times: int = 0  # it hit
    codes: set[int] = field(default_factory=set)
    seen: str = ""
    saved_steps_lost: list[int] = field(default_factory=list)
    steps_again: list[int] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)


class Report:
    """Counts, samples and failures."""

    def __init__(self, seed: int, output: Path) -> None:
        self.seed, self.output, self.start = seed, output, time.monotonic()
        self.provenance = provenance()
        self.cycles = self.identical = 0
        self.faults: dict[str, Record] = {}
        self.failures: list[str] = []
        self.memory: Samples = []  # of the soak itself
        self.peaks: Samples = []  # of undisturbed trainings, one after the other
        self.long: list[Samples] = []  # of one long training each
        self.descriptors: list[int] = []

    def fail(self, message: str) -> None:
        print(message, flush=True)
        self.failures.append(message)

    def note(self) -> None:
        """After a cycle: samples this process, tells how far it is, and writes what there is."""
        self.memory.append((time.monotonic(), resident_mib()))
        self.descriptors.append(len(os.listdir("/proc/self/fd")))
        print(
            f"{(time.monotonic() - self.start) / 60:6.1f} min  {self.cycles} trainings  {self.hits} faults  "
            f"{len(self.failures)} failures  {self.memory[-1][1]:.0f} MiB",
            flush=True,
        )
        self.write()

    @property
    def hits(self) -> int:
        return sum(record.times for record in self.faults.values())

    def judge(self, minutes: float) -> None:
        """Fails what grows, by more than the fit's two standard errors, and signals that took long."""
        if self.descriptors and max(self.descriptors) > self.descriptors[0] + 4:
            self.fail(f"descriptors grew from {self.descriptors[0]} to {max(self.descriptors)}")
        if minutes >= 60:  # a shorter one measures the start
            for name, samples in self._samples().items():
                slope, error = growth(samples)
                if slope - 2 * error > MOST_GROWTH:
                    self.fail(f"{name}: grew by {slope:.2f} +- {error:.2f} % an hour")
        for name, record in self.faults.items():
            if record.seconds and (slowest := max(seconds for _, seconds in record.seconds)) > MOST_SECONDS:
                self.fail(f"{name}: {slowest:.1f} s from the signal to the end")

    def write(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        report = {
            "minutes": (time.monotonic() - self.start) / 60,
            "seed": self.seed,
            "cycles": self.cycles,
            "identical": self.identical,
            "undisturbed": len(self.peaks),
            "injected": self.hits,
            "faults": {name: {**vars(each), "codes": sorted(each.codes)} for name, each in self.faults.items()},
            "memory": {
                name: {
                    "percent_per_hour": growth(samples)[0],
                    "standard_error": growth(samples)[1],
                    "minutes_and_mib": [[(when - self.start) / 60, mib] for when, mib in samples],
                }
                for name, samples in self._samples().items()
            },
            "descriptors": self.descriptors,
            "failures": self.failures,
            **self.provenance,
        }
        write_json(self.output / "report.json", report)
        (self.output / "report.md").write_text(_markdown(report))

    def _samples(self) -> dict[str, Samples]:
        """What is fitted: of a long training the second half, since the first loads and compiles."""
        samples = {"the soak itself": self.memory, "peak of undisturbed trainings": self.peaks}
        for count, each in enumerate(self.long):
            samples[f"long training {count + 1}"] = each[len(each) // 2 :]
        return samples


def growth(samples: Samples) -> tuple[float, float]:
    """Slope of the line through (seconds, MiB), and its standard error, in percent of the mean an hour."""
    if len(samples) < 3:
        return 0.0, 0.0
    seconds, mib = np.array(samples).T
    hours = (seconds - seconds.mean()) / 3600
    slope = (hours * mib).sum() / (hours**2).sum()
    residual = mib - mib.mean() - slope * hours
    error = ((residual**2).sum() / (len(mib) - 2) / (hours**2).sum()) ** 0.5
    return float(100 * slope / mib.mean()), float(100 * error / mib.mean())


def _markdown(report: dict[str, Any]) -> str:
    ends = report["cycles"] + report["undisturbed"]
    lines = [
        f"# Soak: {report['minutes']:.1f} minutes, seed {report['seed']}",
        "",
        f"{report['injected']} faults in {report['cycles']} trainings, and {report['undisturbed']} trainings without "
        f"any. {report['identical']} of these {ends} ended identical to the bit with an "
        f"uninterrupted one. Every line that a run said was compared with what it must say. "
        f"{len(report['failures'])} failures.",
        "",
        "| memory of | first | last | a line through all, an hour |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, each in report["memory"].items():
        if mib := [value for _, value in each["minutes_and_mib"]]:
            slope = f"{each['percent_per_hour']:+.2f} +- {each['standard_error']:.2f} %"
            lines.append(f"| {name} | {mib[0]:.1f} MiB | {mib[-1]:.1f} MiB | {slope} |")
    if report["descriptors"]:
        first, most = report["descriptors"][0], max(report["descriptors"])
        lines += ["", f"Open descriptors of the soak: {first} at first, {most} at most."]
    lines += [
        "",
        "Lost: steps of a whole checkpoint that the run did not go on from. Again: steps that were done and are done "
        "again, the most and on average; the running batch does not count. Seconds: from the signal to the end of the "
        "process, median and most.",
        "",
        "| fault | times | lost | again | seconds | exit codes | what the user saw last |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for name, each in sorted(report["faults"].items()):
        again = f"{max(each['steps_again'])}, {sum(each['steps_again']) / each['drawn']:.1f}"
        seconds = [value for _, value in each["seconds"]]
        took = f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else ""
        lines.append(
            f"| {name} | {each['times']} | {sum(each['saved_steps_lost'])} | {again} "
            f"| {took} | {', '.join(map(str, each['codes']))} | {each['seen'].replace('|', '/') or 'nothing'} |"
        )
    settings = sorted({setting for each in report["faults"].values() for setting, _ in each["seconds"]})
    lines += ["", "| from a signal to the end, by setting | times | median | most |", "| --- | ---: | ---: | ---: |"]
    for setting in settings:
        seconds = [value for each in report["faults"].values() for name, value in each["seconds"] if name == setting]
        lines.append(f"| {setting} | {len(seconds)} | {median(seconds):.1f} s | {max(seconds):.1f} s |")
    return "\n".join([*lines, "", *(f"```\n{failure}\n```" for failure in report["failures"])]) + "\n"
