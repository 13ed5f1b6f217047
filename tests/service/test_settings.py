"""Laws of the settings: documented where users look, and refused with the value when wrong."""

import re

import pytest
from pydantic import ValidationError

from service.settings import CHECKOUT, Settings, as_env_example, as_table


def test_the_readme_and_the_env_example_list_every_setting():
    """Both are generated; `python -m service.settings` brings them up to date."""
    assert as_table() in (CHECKOUT / "README.md").read_text()
    assert as_env_example() == (CHECKOUT / ".env.example").read_text()


@pytest.mark.parametrize(
    ("name", "value"), [("timezone", "Mars/Olympus"), ("quiet_hours", "late"), ("buckets", 0), ("explore_share", 2)]
)
def test_a_wrong_setting_is_named(tmp_path, name, value):
    """The error names the setting and what it got."""
    with pytest.raises(ValidationError, match=name):
        Settings(home=tmp_path, _env_file=None, **{name: value})


def test_every_line_of_the_env_example_stands_for_its_default(tmp_path):
    """Uncommented as it is, the file loads and changes nothing: what is empty there is unset."""
    env = tmp_path / ".env"
    written, found = re.subn(r"^# (?=[A-Z_]+=)", "", as_env_example(), flags=re.MULTILINE)
    assert found == len(Settings.model_fields)
    env.write_text(written)
    assert Settings(_env_file=env) == Settings(_env_file=None)


def test_secrets_are_made_once_and_kept(tmp_path):
    """A second start of the same home signs with the same key, and no other user can read it."""
    first = Settings(home=tmp_path, _env_file=None)
    second = Settings(home=tmp_path, _env_file=None)

    assert first.signing_key == second.signing_key
    assert first.pepper != first.signing_key
    assert (tmp_path / "secret_key").stat().st_mode & 0o077 == 0
