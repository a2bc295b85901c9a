"""`msssm recipes` lists all that comes with msssm, shows it as it is, and copies it without touching what is there."""

from pathlib import Path

import pytest
import yaml

from tasks.cli.main import main
from tasks.table.files import recipe_file, recipes, table_file, tables
from tasks.table.spec import named_recipe, read_table


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["recipes", *words])
    return capsys.readouterr().out


def test_every_recipe_and_table_is_listed_with_its_first_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = told(capsys).splitlines()
    files = {name: recipe_file(name) for name in recipes()} | {name: table_file(name) for name in tables()}
    for name, path in files.items():
        [entry] = [line for line in lines if line.startswith(f"  {name} ")]
        about = entry.removeprefix(f"  {name}").strip()
        assert len(about) > 20
        assert path.read_text().startswith(f"# {about}")


def test_an_experiment_lists_its_rows_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [line.split()[0] for line in told(capsys, "ablations").splitlines() if line.startswith("  ablations/")]
    assert listed == [
        f"{t}/{row}" for t in tables() if t.startswith("ablations/") for row in read_table(table_file(t)).rows
    ]


def test_a_narrow_terminal_is_not_overrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, (told(capsys) + told(capsys, "quick")).splitlines())) <= 88  # the one line that is not wrapped


@pytest.mark.parametrize("name", ["listops", "quick/listops"])
def test_a_file_is_shown_and_copied_as_it_is(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe_file(name) if name in recipes() else table_file(name)
    assert told(capsys, name) == path.read_text()
    told(capsys, name, "--output", str(tmp_path / "new/mine.yaml"))
    assert (tmp_path / "new/mine.yaml").read_text() == path.read_text()


def test_a_row_is_the_recipe_that_fit_takes_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    name = "quick/listops/mamba"
    assert told(capsys, name) == named_recipe(name).read_text()
    assert yaml.safe_load(told(capsys, name))["model"]["init_args"]["backbone"]["init_args"]["d_model"] == 44


def test_a_copied_experiment_is_one_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "quick", "--output", str(tmp_path / "mine"))
    copies = {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()}
    assert copies == {path.name: path.read_text() for path in table_file("quick/listops").parent.glob("*.yaml")}
    assert list(read_table(tmp_path / "mine/listops.yaml").rows) == list(read_table(table_file("quick/listops")).rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "no recipe or experiment 'nope'; there are imagenet"),
        (["quick/listops/nope"], "has no row 'nope'; it has msssm_s6"),
        (["quick/nope"], "no recipe or experiment 'quick/nope'"),
        (["--output", "x.yaml"], "name it"),
        (["listops", "--output", "."], "exists; choose another --output"),
        (["../listops"], "no recipe or experiment '../listops'"),
        (["listops", "--outptu", "x"], "unrecognized arguments: --outptu x; see msssm recipes --help"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["recipes", *words])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert error.count("\n") == 1
