from __future__ import annotations

import json

import pytest
from serving import small_models as small

from tlexport.cli import main
from tlexport.serving.lint import RULES


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository in the working folder, of one model that is right."""
    monkeypatch.chdir(tmp_path)
    small.lay(tmp_path / "models", "double", small.double(), small.plain())
    return tmp_path / "models"


def run(capsys, *arguments):
    """Exit code, standard output and error of one command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


def break_it(place, old='name: "x"', new='name: "xs"'):
    config = place / "double/config.pbtxt"
    config.write_text("# kept\n" + config.read_text().replace(old, new))


def test_a_clean_repository_passes(place, capsys):
    code, out, err = run(capsys, "lint", "models")
    assert (code, err) == (0, "")
    assert "passed: 1 model against the Triton releases there are: 0 errors, 0 warnings" in out
    assert "next: tlexport serve models" in out


def test_warnings_pass(place, capsys):
    break_it(place, "count: 1", "count: 999")
    code, out, err = run(capsys, "lint", "models")
    assert (code, err) == (0, "")
    assert "warning thread-budget" in out


def test_an_error_has_its_place_its_fix_and_exit_code_8(place, capsys):
    break_it(place)
    code, out, err = run(capsys, "lint", "models")
    assert code == 8
    assert "error tensor-unknown* double/config.pbtxt:4 input[0].name\n" in out
    assert "  got:      'xs'; did you mean 'x'?\n" in out
    assert '  fix:      write name: "x"\n' in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "double/config.pbtxt: tensor-unknown" in err
    assert "--fix makes the edits marked *" in err


def test_json_is_alone_and_whole(place, capsys):
    break_it(place)
    code, out, _ = run(capsys, "lint", "models", "--json")
    report = json.loads(out)
    assert (code, report["errors"], report["warnings"]) == (8, 1, 0)
    (finding,) = report["findings"]
    assert (finding["rule"], finding["line"], finding["fixable"]) == ("tensor-unknown", 4, True)
    assert finding["file"] == "double/config.pbtxt"


def test_fix_shows_what_it_changed_and_the_next_run_is_clean(place, capsys):
    break_it(place)
    code, out, err = run(capsys, "lint", "models", "--fix")
    assert (code, err) == (0, "")
    assert "changed double/config.pbtxt; as it was: double/config.pbtxt.orig" in out
    assert '  -input { name: "xs" data_type: TYPE_FP32 dims: [3]  }' in out
    assert '  +input { name: "x" data_type: TYPE_FP32 dims: [3]  }' in out
    assert (place / "double/config.pbtxt").read_text().startswith("# kept\n")
    code, out, _ = run(capsys, "lint", "models", "--fix")
    assert (code, "changed" in out) == (0, False)


def test_a_release_is_held(place, capsys):
    code, out, _ = run(capsys, "lint", "models", "--triton", "24.04")
    assert code == 8
    assert "IR version 9 or older, as Triton 24.04 reads" in out
    assert "serve it with 24.05 or newer" in out
    assert run(capsys, "lint", "models", "--triton", "24.05")[0] == 0


def test_every_rule_is_listed(capsys):
    code, out, _ = run(capsys, "lint", "--rules")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        [name, severity] for name, (severity, _) in RULES.items()
    ]
    assert all(len(line) <= 110 for line in out.splitlines())
    assert set(json.loads(run(capsys, "lint", "--rules", "--json")[1])) == set(RULES)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 8, "no such folder"),
        (("models", "--triton", "24.1"), 2, "24.1"),
        (("models", "--cores", "-1"), 2, "--cores"),
    ],
)
def test_refusals_have_their_exit_code(place, capsys, arguments, code, message):
    got, out, err = run(capsys, "lint", *arguments)
    assert (got, out) == (code, "")
    assert message in err
