"""The README says what is so: its commands exist, its folders are there."""

import re
import shlex
from pathlib import Path

import pytest

from service.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^(?:\.venv/bin/)?kairos [^#\n]+|(?<=\$\()\.venv/bin/kairos [^|)]+", README, re.M)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_understood(command: str, capsys):
    """Its options too: with ``--help`` at its end it explains itself instead of complaining."""
    words = shlex.split(command)[1:]
    with pytest.raises(SystemExit) as done:
        main([*words, "--help"])

    assert done.value.code in (0, None)
    said = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in said


def test_make_targets_of_the_readme_exist():
    """Every `make …` that the README names is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))

    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


def test_folders_of_the_readme_exist():
    """The table of folders shows what is there."""
    for name in re.findall(r"^\| `([a-z]+)/` \|", README, re.M):
        assert (ROOT / name).is_dir()


def test_the_lock_file_carries_no_address():
    """Hashes, no download addresses."""
    lock = (ROOT / "requirements.lock").read_text()

    assert "--hash=sha256:" in lock
    assert "://" not in lock
