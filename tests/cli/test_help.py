"""Help is instant, complete, and completes."""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tlexport import plugins
from tlexport.cli import ORDER

PROGRAM = Path(sys.executable).with_name("tlexport")
COMMANDS = plugins.names("cli")
HEAVY = {
    *("torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime", "onnxscript"),
    *("tritonclient", "grpc", "rich", "optuna", "safetensors", "PIL"),
}
"""What help must not import; each costs more than all the rest."""

ROUNDS = 9
TIMES_CLICK = 3.0


def tlexport(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *args],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | env,
        check=False,
    )


def imported_by(*args: str) -> set[str]:
    """Top-level modules in memory when `tlexport ARGS` is done."""
    code = (
        "import sys\nfrom tlexport.cli import main\n"
        f"try: main({list(args)!r})\nexcept SystemExit as done: assert done.code == 0, done.code\n"
        "print('MODULES', *{m.split('.')[0] for m in sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.rpartition("MODULES")[2].split())


def test_help_lists_every_command_in_the_order_of_the_work():
    ran = tlexport("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Example:" in ran.stdout
    listed = re.findall(r"^  ([a-z0-9-]+)  +\S", ran.stdout.partition("Commands:")[2], re.MULTILINE)
    assert sorted(listed) == COMMANDS
    assert listed[: len(ORDER)] == ORDER
    assert tlexport("-h").stdout == ran.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example_that_parses(command):
    ran = tlexport(command, "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    example = ran.stdout.partition("Example:\n")[2].splitlines()[0].split()
    assert example[:2] == ["tlexport", command]
    flags = set(re.findall(r"(?<!\S)(--[a-z0-9-]+)", ran.stdout))
    assert {part for part in example if part.startswith("--")} <= flags
    assert "--json" in flags
    options = ran.stdout.partition("Options:\n")[2]
    assert not re.search(r"^  --[a-z-]+( [A-Z]+)?$\n(?!  {5,})", options, re.MULTILINE), "no help"


@pytest.mark.parametrize("args", [[], *([c] for c in COMMANDS)])
def test_help_imports_nothing_heavy(args):
    assert imported_by(*args, "--help") & HEAVY == set()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, tlexport; print(*{m.split('.')[0] for m in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ran.stdout.split()) & {*HEAVY, "numpy", "click", "msgspec"} == set()


def cpu_s(command: list[str]) -> float:
    """User and system seconds of a child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_costs_at_most_three_times_import_click():
    """They take turns, so that a busy machine hurts both; the median ratio counts."""
    ours = [str(PROGRAM), "--help"]
    click = [sys.executable, "-c", "import click"]
    for command in (ours, click):
        cpu_s(command)
    pairs = [(cpu_s(ours), cpu_s(click)) for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"tlexport --help costs {ratio:.2f} times `python -c 'import click'`")
    assert ratio <= TIMES_CLICK, pairs


def test_the_version_is_the_packages():
    ran = tlexport("--version")
    assert ran.returncode == 0
    import tlexport as package

    assert package.__version__ in ran.stdout


@pytest.mark.parametrize(
    ("given", "near"),
    [("trian", "train"), ("exprot", "export"), ("benchmark", "bench"), ("backbone", "backbones")],
)
def test_an_unknown_command_is_answered_with_the_nearest(given, near):
    ran = tlexport(given, "x")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert f"no command called '{given}'" in ran.stderr
    assert f"did you mean '{near}'?" in ran.stderr
    assert "Traceback" not in ran.stderr


def completed(*words: str) -> list[str]:
    """What bash is told for the last of these words."""
    ran = tlexport(
        _TLEXPORT_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(("tlexport", *words)),
        COMP_CWORD=str(len(words)),
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return [line.split(",", 1)[1] for line in ran.stdout.splitlines() if "," in line]


def test_shell_completion_has_a_script_for_each_shell():
    for shell in ("bash", "zsh", "fish"):
        ran = tlexport(_TLEXPORT_COMPLETE=f"{shell}_source")
        assert "_TLEXPORT_COMPLETE" in ran.stdout
        assert "complete" in ran.stdout


def test_commands_are_completed():
    assert completed("") == [
        *ORDER,
        *(name for name in COMMANDS if name not in ORDER),
    ]
    assert completed("ex") == ["export"]
    assert set(completed("b")) == {"bench", "backbones"}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_completed(command):
    found = completed(command, "--")
    assert {"--json", "--help"} <= set(found)
    listed = set(re.findall(r"(?<!\S)(--[a-z0-9-]+)", tlexport(command, "--help").stdout))
    assert set(found) <= listed


def test_values_of_choices_are_completed():
    assert set(completed("serve", "--server", "")) == {"auto", "embedded", "docker"}


def test_completion_after_an_unknown_command_is_silent():
    for last in ("", "--"):
        ran = tlexport(
            _TLEXPORT_COMPLETE="bash_complete",
            COMP_WORDS=f"tlexport nonsense {last}",
            COMP_CWORD="2",
        )
        assert ran.stderr == "", "it would be printed into the line being typed"
