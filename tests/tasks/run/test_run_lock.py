"""Two processes never train in one run folder; a killed one leaves it free."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.cli.main import main
from tests.support.recipes import write_recipe

HOLD = (
    "import os, sys, time; from pathlib import Path; from tasks.run.lock import lock_run; "
    "lock = lock_run(Path(sys.argv[1])); worker = os.fork(); worker and print('held', flush=True); "
    "time.sleep(60 if worker else 3)"
)


def test_a_folder_in_use_is_refused_until_its_process_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed, and with a forked worker that outlives it, as a data loader's may."""
    recipe, run = write_recipe(tmp_path, max_epochs=1), tmp_path / "runs/seed0"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SystemExit, match="2"):
            main(["fit", "--config", str(recipe)])
        assert f"another process trains in {run}" in capsys.readouterr().err
        assert [path.name for path in run.iterdir()] == [".lock"], "the refused process changes nothing"
        other.kill()
        other.wait()
        main(["fit", "--config", str(recipe)])
    assert (run / "metrics.json").exists()
