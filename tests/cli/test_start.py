"""`salf --help` and `import salf` are quick: they load neither PyTorch nor pydantic, nor the commands."""

import subprocess
import sys

import pytest

from salf.cli import COMMANDS, load_command

PROGRAM = """
import sys
import salf
assert "torch" not in sys.modules, "import salf"
from salf.cli import main
sys.argv = ["salf", "--help"]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
loaded = sorted({"torch", "pydantic", "scipy", "matplotlib", "salf.experiment", "salf.cli.run"} & {*sys.modules})
assert not loaded, loaded
"""


def test_help_loads_no_command() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f" {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_is_the_first_line_of_the_command(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    assert COMMANDS[name] == (command.help or "").partition("\n")[0]
