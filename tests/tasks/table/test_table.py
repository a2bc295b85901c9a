"""From complete runs to the table: intervals, order, what is missing, what must not be mixed."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from tasks.cli.main import main
from tasks.metrics.intervals import student, wilson
from tasks.table.collect import GIVEN
from tasks.table.plots import read_curve
from tasks.table.spec import read_table, row_recipe
from tests.support.tolerances import FLOAT32

SHORT = {"min_length": 8, "max_length": 50, "max_depth": 6, "max_args": 5, "train_size": 80_000, "batch_size": 50}
FULL = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10, "train_size": 96_000, "batch_size": 50}


def write_run(
    folder: Path,
    row: str,
    seed: int,
    accuracy: float,
    *,
    options: dict[str, Any] = SHORT,
    task: str = "listops",
    **other: Any,
) -> Path:
    """A complete run as `msssm fit` leaves it."""
    run = folder / "runs" / task / row / f"seed{seed}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"class_path": "datamodules.Data", "init_args": options}}))
    metrics = {
        "test": {"test/accuracy": accuracy},
        "validation": {"monitor": "val/accuracy", "best": 0.5},
        "seed": seed,
        "parameters": 69_918,
        "steps": 1600,
        "epochs": 1,
        "train_seconds": 100.0,
        "processes": 1,
        "precision": "32-true",
        "data": {
            "counts": {"train": 80_000, "val": 2000, "test": 5000},
            "mean_length": {"train": 23.0},
            "digest": "d" * 64,
            "root_operator_accuracy": 0.243,
        },
        "commit": "c" * 40,
        "dirty": False,
        "versions": {"python": "3.11.7", "torch": "2.15.0", "lightning": "2.6.6"},
        "hardware": {"processor": "a processor", "threads": 1, "gpus": []},
        **other,
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def table(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The cells of the printed table, which is also what table.md holds."""
    capsys.readouterr()
    main(["table", str(folder)])
    text = capsys.readouterr().out
    assert (folder / "table.md").read_text().strip() == text.strip()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines if line.count("|") == lines[-1].count("|")}) == 1, "columns are aligned"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_what_is_reduced_follows_the_options_that_were_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options of the command line stand beside the numbers, those of a place do not."""
    options = FULL | {"train_size": 45_000, "short_size": 0, "short_batch_size": 100}
    run = write_run(tmp_path, "msssm_s6", 0, 0.4, options=options)
    given = "--data.root /d --data.short_size 0 --trainer.devices=2 --data.train_size=45000"
    (run / "recipe.yaml").write_text(f"{GIVEN}{given}\nmodel: {{}}\n")
    main(["table", str(tmp_path), "--experiment", "small"])
    said = "(reduced: small networks, 45,000 expressions once, after 0 short ones; with --data.short_size 0 "
    assert said + "--data.train_size=45000)" in capsys.readouterr().out
    write_run(tmp_path, "mamba", 0, 0.4, options=options)
    main(["table", str(tmp_path), "--experiment", "small"])
    out = capsys.readouterr().out
    assert "| MS-SSM(S6), with --data.short_size 0 --data.train_size=45000" in out, "where rows differ, it is the row's"
    assert "| Mamba " in out


def test_a_table_over_another_experiments_base_says_what_that_reduces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "mixer-fixed", 0, 0.4, options=FULL | {"short_size": 300_000, "short_batch_size": 100})
    main(["table", str(tmp_path), "--experiment", "ablations", "--of", "small"])
    out = capsys.readouterr().out
    assert "(reduced: small networks, 96,000 expressions once, after 300,000 short ones)" in out
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path), "--of", "small"])
    assert "asked for --of small without an experiment" in capsys.readouterr().err


def test_a_table_names_its_own_metric_unit_and_direction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a task that msssm does not know."""
    tables = tmp_path / "mine"
    tables.mkdir()
    column = {
        "metric": "test/rmse",
        "name": "error",
        "unit": "mV",
        "direction": "lower",
        "data": "signals of {data.hz} Hz",
    }
    texts = {"data": "signals of {data.hz} Hz", "paper": "their signals", "bound": {"zero": 1}}
    rows = {name: {"label": name.upper(), "paper": 0.2} for name in ("a", "b")}
    content = {"base": {}, "rows": rows, "column": column | texts}
    (tables / "signals.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for row, errors in (("a", (0.4, 0.5)), ("b", (0.25, 0.35))):
        for seed, error in enumerate(errors):
            write_run(
                tmp_path, row, seed, 0.0, task="signals", options={"hz": 50, "batch_size": 2}, test={"test/rmse": error}
            )
    main(["table", str(tmp_path), "--experiment", str(tables)])
    text = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[0][1] == "ours: error on signals of 50 Hz, mV"
    assert lines[0][-1] == "paper: error on their signals, mV"
    assert [line[:2] for line in lines[2:]] == [["B", "0.300"], ["A", "0.450"], ["zero (bound)", "1.000"]]
    assert lines[2][2] == "-0.335 .. 0.935", "no range of the metric is known"
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path)])
    assert "the table is of test/accuracy" in capsys.readouterr().err


def test_wilson_interval_of_one_seed() -> None:
    """Wilson 1927 for 450 of 1000: (p + z2/2n -+ z sqrt(p q / n + z2 / 4 n2)) / (1 + z2 / n)."""
    n, p, z = 1000, 0.45, 1.959964
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = ((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))
    assert wilson(0.45, n) == pytest.approx(expected, abs=FLOAT32)


def test_student_interval_of_several_seeds() -> None:
    """t(0.975, 2) = 4.3027 for three seeds."""
    assert student([0.40, 0.42, 0.44]) == pytest.approx((0.42 - 0.049684, 0.42 + 0.049684), abs=FLOAT32)


def test_rows_are_sorted_and_stand_beside_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "msssm_s6", 0, 0.45)
    write_run(tmp_path, "mamba", 0, 0.47)
    write_run(tmp_path, "s4d", 0, 0.47, test={})  # --skip_test
    header, _, *rows = table(tmp_path, capsys)
    assert header[1] == "ours: accuracy on ListOps of 8 to 50 tokens (reduced: small networks), %"
    assert header[-1] == "paper: accuracy on LRA ListOps, %"
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("Mamba", "47.0", "38.02"),
        ("MS-SSM(S6)", "45.0", "63.04"),
        ("root operator alone (bound)", "24.3", ""),
    ]
    text = (tmp_path / "table.md").read_text()
    assert "Training: 1,600 steps of 50 samples; tested once" in text
    assert "The paper's column is of other data: not comparable in value." in text
    assert "Partial table, not yet run: MS-SSM(S6), Mamba's init; MS-SSM(S4); MS-SSM without SSM;" in text


def test_several_seeds_show_their_mean_and_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in enumerate([0.40, 0.42, 0.44]):
        write_run(tmp_path, "s4d", seed, accuracy)
    for seed, accuracy in enumerate([0.2, 0.5]):
        write_run(tmp_path, "mamba", seed, accuracy)
    rows = table(tmp_path, capsys)
    assert rows[2][:5] == ["S4D", "42.0", "37.0 .. 47.0", "40.0 .. 44.0", "3"]
    assert rows[3][2] == "0.0 .. 100.0", "an accuracy is within 0 .. 1"


def test_the_papers_scale_is_comparable_and_smaller_networks_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "msssm_s6", 0, 0.63, options=FULL)
    main(["table", str(tmp_path), "--experiment", "paper"])
    text = capsys.readouterr().out
    assert "| ours: accuracy on LRA ListOps, %" in text
    assert "not comparable" not in text
    (tmp_path / "mine").mkdir()
    entries = "reference: paper/listops\nbase: listops\nreduced: width\nrows: {msssm_s6: {}}\n"
    (tmp_path / "mine/listops.yaml").write_text(entries)
    main(["table", str(tmp_path), "--experiment", str(tmp_path / "mine")])
    text = capsys.readouterr().out
    assert "ours: accuracy on LRA ListOps (reduced: width), %" in text
    assert "The paper's column is of other networks: not comparable in value." in text


@pytest.mark.parametrize("name", ["small/scifar", "paper/scifar"])
def test_the_recipe_of_a_run_says_which_experiment_it_is_of(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of one name stand in several; only one of these is reduced."""
    recipe = row_recipe(f"{name}/s4d")
    recipe["data"]["init_args"] |= {"greyscale": False, "permutation_seed": None}
    data = {"counts": {"train": 45000, "val": 5000, "test": 10000}, "classes": 10, "digest": "d" * 64}
    folder = write_run(tmp_path, "s4d", 0, 0.7, options=recipe["data"]["init_args"], task="scifar", data=data)
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    assert ("(reduced: small networks" in table(tmp_path, capsys)[0][1]) == name.startswith("small")


def test_imagenette_is_never_imagenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of its own beside ImageNet's, with neither a number nor a heading of the paper's."""
    data = {"counts": {"train": 8569, "val": 900, "test": 3925}, "classes": 10, "digest": "d" * 64}
    for row in ("msssm_s6", "vit"):
        write_run(tmp_path, row, 0, 0.6, options={"batch_size": 64}, task="imagenette", data=data, epochs=15)
    header, _, *rows = table(tmp_path, capsys)
    assert header[1] == "ours: accuracy on Imagenette (reduced: small networks, 15 epochs), %"
    assert [row[0] for row in rows] == ["MS-SSM(S6)", "ViT (timm)", "chance (bound)"]
    text = (tmp_path / "table.md").read_text()
    assert "ImageNet" not in text
    assert "paper" not in text
    shutil.rmtree(tmp_path / "runs")
    data["counts"] = {"train": 9469, "val": 3925, "test": 3925}
    write_run(tmp_path, "vit", 0, 0.6, options={"batch_size": 64}, task="imagenette", data=data)
    assert "on Imagenette (9,469 / 3,925 / 3,925 samples; reduced" in table(tmp_path, capsys)[0][1]


def test_csv_and_recipe_hold_what_repeats_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row, size in (("s4d", 1), ("mamba", 2)):
        for seed in (0, 1):
            cpu = {"cpu_seconds": 99.6} if seed else {}  # earlier runs have no such key
            options = SHORT | {"size": size, "shuffle_seed": seed, "root": f"/{seed}"}
            write_run(tmp_path, row, seed, 0.4, options=options, dirty=seed == 1, **cpu)
    header, _, line, *_ = table(tmp_path, capsys)
    assert line[header.index("training, s")] == "100", "durations are of one clock"
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(line["row"], line["seed"], line["dirty"], line["full_scale"]) for line in lines[:2]] == [
        ("s4d", "0", "False", "False"),
        ("s4d", "1", "True", "False"),
    ]
    assert [line["cpu_seconds"] for line in lines[:2]] == ["", "100"]
    for key, value in {
        **{"commit": "c" * 40, "data_digest": "d" * 64, "torch": "2.15.0", "processor": "a processor", "threads": "1"},
        **{"steps": "1600", "config": "listops.yaml"},
    }.items():
        assert {line[key] for line in lines} == {value}, key
    assert "with uncommitted changes" in (tmp_path / "table.md").read_text()
    recipes = read_table(tmp_path / "listops.yaml")
    data = recipes.recipe("mamba")["data"]["init_args"]
    assert data == SHORT | {"size": 2, "shuffle_seed": "${seed_everything}"}
    assert recipes.rows["mamba"].options == {"data.size": 2}


@pytest.mark.parametrize(
    "difference",
    [{"steps": 800}, {"data": {"counts": {}, "mean_length": {}, "digest": "e" * 64, "root_operator_accuracy": 0.1}}],
)
def test_rows_of_another_budget_cannot_share_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], difference: dict[str, Any]
) -> None:
    write_run(tmp_path, "mamba", 0, 0.4)
    write_run(tmp_path, "s4d", 0, 0.4)
    path = tmp_path / "runs/listops/s4d/seed0/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | difference))
    with pytest.raises(SystemExit, match="2"):
        main(["table", str(tmp_path)])
    assert "runs of one table must agree in data digest, steps, batch size" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
def test_a_damaged_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run = write_run(tmp_path, "s4d", 0, 0.4)
    (run / name).write_text("")
    with pytest.raises(SystemExit, match="2"):
        main(["table", str(tmp_path)])
    assert f"the run {run} is damaged" in capsys.readouterr().err


def test_no_complete_run_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs/listops/s4d/seed0").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        main(["table", str(tmp_path)])
    assert "run `make reproduce-table` first" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_curve_is_read_across_a_restart(tmp_path: Path, names: str) -> None:
    """Two event files whose steps overlap: each step once, the later value, whichever file's name comes first."""
    for name, steps, value in ((names[0], (10, 20), 0.25), (names[1], (20, 30), 0.5)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in steps:
                writer.add_scalar("val/accuracy", value, step)
        [written] = (tmp_path / name).iterdir()
        written.rename(tmp_path / f"events.out.tfevents.{name}")
    assert read_curve(tmp_path, "val/accuracy") == ([10, 20, 30], [0.25, 0.5, 0.5])


ECG: dict[str, Any] = {
    "test": {"test/auroc": 0.95},
    "validation": {"monitor": "val/auroc", "best": 0.95},
    "data": {
        "counts": {"train": 480, "val": 60, "test": 60},
        "digest": "e" * 64,
        "label_set": "rhythm",
        "synthetic": True,
        "dropped_without_label": 0,
        "quarantined": 0,
    },
    "report": {"interval_95": {"patients": {"auroc": [0.9, 0.99]}}},
}


def test_several_tasks_have_an_overview_and_a_section_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "msssm_s6", 0, 0.45)
    write_run(tmp_path, "s4d", 0, 0.40)
    write_run(tmp_path, "msssm_s6", 0, 0.0, task="ptbxl", options={"batch_size": 50, "sampling_rate": 100}, **ECG)
    main(["table", str(tmp_path), "--experiment", "quick"])
    text = (tmp_path / "table.md").read_text()
    overview, listops, ecg = text.split("\n# ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in overview.splitlines() if "|" in line]
    assert [cell.split(":")[0] for cell in rows[0]] == [
        "model",
        "ListOps of 8 to 50 tokens (reduced",
        "synthetic ECGs (not PTB-XL), rhythm labels",
    ]
    assert {row[0]: row[1:] for row in rows[2:]} == {
        "MS-SSM(S6)": ["45.0 (43.6 .. 46.4)", "0.950 (0.900 .. 0.990)"],
        "S4D": ["40.0 (38.7 .. 41.4)", ""],
    }
    assert "Mega 63.14" in listops
    assert "0.979" in ecg, "the paper's MS-SSM(S6) on rhythm labels"
    assert "not comparable in value" in ecg


def test_the_page_stands_alone_and_shows_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "s4d", seed, 0.4)
    (tmp_path / "listops_report.md").touch()
    shutil.copy("docs/results/quick/listops_report.png", tmp_path)
    main(["table", str(tmp_path)])
    text = (tmp_path / "table.html").read_text()
    assert text.count("runs/listops/s4d/seed") == 2
    assert text.count("data:image/png;base64,") == 3, "a slice adds a picture to the table of its task"
    assert "href='listops_report.md'" in text
    assert "http" not in text
    assert text.count("c" * 40) == 2
    assert len(text) < 300_000


def test_ablations_show_their_paired_difference_to_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    right = {"full": generator.random(5000) < 0.5}
    right["s4"] = right["full"].copy()
    right["s4"][np.flatnonzero(right["full"])[:50]] = False  # only there do the two differ
    for row, correct in right.items():
        run = write_run(tmp_path, row, 0, correct.mean())
        np.savez(
            run / "predictions.npz",
            sample=np.arange(5000),
            target=np.ones(5000, dtype=np.int64),
            prediction=correct.astype(np.int64),
            metric=np.array("accuracy"),
        )
    head, _, full, s4, _ = table(tmp_path, capsys)
    assert head[3:5] == ["minus full", "its 95 % interval"]
    assert full[3:5] == ["", ""]
    assert (s4[0], s4[3], s4[-1]) == ("S4 in place of S6", "-1.0", "62.83")
    # 50 differing items are Poisson nearly: 1.0 +- 1.96 sqrt(50) / 50; unpaired, it would be +-2.0.
    low, high = map(float, s4[4].split(" .. "))
    assert -1.4 <= low <= -1.2
    assert -0.8 <= high <= -0.6


def test_ablations_of_several_seeds_are_paired_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (full, euler) in enumerate([(0.40, 0.41), (0.50, 0.52), (0.60, 0.63)]):
        write_run(tmp_path, "full", seed, full)
        write_run(tmp_path, "euler", seed, euler)
    *_, euler_row, _ = table(tmp_path, capsys)
    # Differences 1, 2, 3: Student's half interval is 4.303 / sqrt(3) = 2.5 points.
    assert euler_row[3:5] == ["+2.0", "-0.5 .. +4.5"]
