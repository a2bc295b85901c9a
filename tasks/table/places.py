"""Options of a command that say where its trainings run, and how many at a time."""

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from msssm.errors import InputError
from tasks.messages import say
from tasks.table.pool import LocalPool, Pool


def pool_arguments(parser: argparse.ArgumentParser, jobs: str) -> None:
    """Adds the options; `jobs` describes how many trainings run at a time by default."""
    parser.add_argument("--jobs", type=_count, metavar="N", help=f"trainings at a time; {jobs}")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster", metavar="NAME", help="hand them to a cluster through submitit: slurm")
    where.add_argument("--ray", metavar="ADDRESS", help="hand them to a Ray cluster: auto, ray://host:10001")
    parser.add_argument(
        "--resources",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of each training there: parameters of submitit (timeout_min=720 slurm_partition=gpu gpus_per_node=1) or "
        "options of a Ray task (num_gpus=1)",
    )


def open_pool(options: argparse.Namespace, here: int, folder: Path, lock: int | None = None) -> Pool:
    """Opens the pool that `pool_arguments` describe.

    Args:
        options: parsed.
        here: trainings at a time on this machine, unless the options say so; a cluster gets all at once.
        folder: for the files of a cluster's jobs.
        lock: descriptor that trainings of this machine keep open.

    Raises:
        InputError: a resource is wrong, or the cluster cannot be used.
    """
    resources = dict(map(_resource, options.resources))
    everything = options.jobs or 10_000
    if options.cluster is not None:
        from tasks.table.cluster import SubmititPool

        return SubmititPool(everything, options.cluster, folder / "submitit", resources)
    if options.ray is not None:
        from tasks.table.cluster import RayPool

        return RayPool(everything, options.ray, resources)
    if resources:
        raise InputError("--resources are those of a cluster; name one with --cluster or --ray")
    return LocalPool(options.jobs or here, lock)


@contextmanager
def resumable() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM end running trainings with a checkpoint, and then the command.

    Raises:
        SystemExit: after one of them (code 130).
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; the same command resumes")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {word}")
    return int(word)


def _resource(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise InputError(f"--resources {word}: expected KEY=VALUE, such as gpus_per_node=1")
    return key, yaml.safe_load(value)
