"""The direction of imports is law: what CI checks does notice a breach."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: File, the import planted into it, and the contract that must then be broken.
PLANTED = [
    ("features/labels.py", "import training.metrics", "service → training → features"),
    ("service/flow/audience.py", "from service.flow import decide", "A later step of service/flow"),
    ("service/links.py", "import service.campaigns", "What several steps share"),
    ("service/flow/predict.py", "import mlflow", "No request and no step loads the registry"),
    ("service/worker.py", "from training import simulation", "The world's truth"),
    ("training/metrics.py", "import fastapi", "features and training know no web"),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> str:
    """What lint-imports says of a copy of the packages with every breach planted."""
    copy = tmp_path_factory.mktemp("planted")
    for package in ("features", "training", "service"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name, line, _ in PLANTED:
        file = copy / name
        file.write_text(f"{file.read_text()}\n\ndef _planted() -> None:\n    {line}\n")
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize(("name", "line", "contract"), PLANTED)
def test_a_planted_import_breaks_its_contract(broken: str, name: str, line: str, contract: str):
    """Also when it hides inside a function: the contract that forbids it is reported as broken."""
    verdicts = [row for row in broken.splitlines() if row.startswith(contract) and row.rstrip().endswith("BROKEN")]

    assert verdicts, f"{line!r} in {name} went unnoticed"
