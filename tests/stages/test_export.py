"""An artifact is kept while it is current, and made again when it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_bundles

from tlexport import plugins
from tlexport.bundle import Artifact, Bundle, digest_of
from tlexport.cli import main
from tlexport.errors import BundleError, ExportError, OptionError
from tlexport.files import sha256_of
from tlexport.options import ExportOptions, RuntimeOptions
from tlexport.reports import ExportReport
from tlexport.runtimes import connect
from tlexport.stages.export import export


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    small_bundles.plug_task(monkeypatch)
    return small_bundles.make(tmp_path / "tiny")


def test_the_report_is_of_the_file_that_was_written(folder):
    report = export(folder)
    assert report.artifact == "onnx-fp32"
    assert Path(report.file) == folder / "artifacts" / "onnx-fp32" / "model.onnx"
    assert report.sha256 == sha256_of(Path(report.file))
    assert report.size_bytes == Path(report.file).stat().st_size
    assert not report.reused
    assert report.triton is None
    bundle = Bundle(folder)
    assert bundle.report("export-onnx-fp32", ExportReport) == report
    artifact = bundle.artifact("onnx-fp32")
    assert artifact.sha256 == report.sha256
    assert (artifact.options["opset"], artifact.options["ir_version"]) == (
        report.opset,
        report.ir_version,
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "artifacts",
        "bundle.json",
        "golden",
        "reports",
        "weights.safetensors",
    ], "nothing temporary is left"


def test_a_current_artifact_is_kept(folder, monkeypatch):
    first = export(folder)
    target = plugins.load("targets", "onnx")
    monkeypatch.setattr(target, "export", lambda *a: pytest.fail("exported again"))
    again = export(Bundle(folder))
    assert again.reused
    assert (again.sha256, again.file, again.size_bytes) == (
        first.sha256,
        first.file,
        first.size_bytes,
    )


@pytest.mark.parametrize("change", ["stale", "damaged", "gone", "release", "force"])
def test_it_is_made_again_when_it_is_not_what_is_asked_for(folder, change):
    first = export(folder)
    file = Path(first.file)
    record = file.with_name("artifact.json")
    if change == "stale":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"source_sha256": "0" * 64}))
    elif change == "damaged":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "gone":
        file.unlink()
    options = ExportOptions(
        force=change == "force", triton="23.05" if change == "release" else None
    )
    again = export(folder, options)
    assert not again.reused
    assert Bundle(folder).artifact("onnx-fp32").sha256 == again.sha256
    if change == "release":
        assert again.opset == 19
        assert again.triton == "23.05"
        assert not export(folder).reused, "and back"
    else:
        assert again.sha256 == first.sha256


def test_a_failure_leaves_the_older_artifact(folder, monkeypatch):
    first = export(folder)

    def refuse(*args):
        raise ExportError("a", got="b", fix="c")

    monkeypatch.setattr(plugins.load("targets", "onnx"), "export", refuse)
    with pytest.raises(ExportError):
        export(folder, ExportOptions(force=True))
    assert Bundle(folder).artifact("onnx-fp32").sha256 == first.sha256
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_changed_weights_are_refused(folder):
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="changed after it was made"):
        export(folder)


def test_unknown_targets_and_releases_are_refused(folder):
    with pytest.raises(OptionError, match="a target of: onnx"):
        export(folder, ExportOptions(target="coreml"))
    with pytest.raises(OptionError, match="a Triton release of"):
        export(folder, ExportOptions(triton="19.13"))
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        export(folder / "golden")


def test_a_full_disk_is_told_and_the_older_artifact_stays(folder):
    first = export(folder)
    code = """
        import resource, sys
        sys.path.insert(0, sys.argv[2])
        import pytest, small_bundles
        from tlexport.errors import BundleError
        from tlexport.options import ExportOptions
        from tlexport.stages.export import export
        small_bundles.plug_task(pytest.MonkeyPatch())
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
        try:
            export(sys.argv[1], ExportOptions(force=True))
        except BundleError as error:
            print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TMPDIR": str(folder.parent)},
        check=False,
    )
    assert "expected to write" in ran.stdout, ran.stdout + ran.stderr
    assert "free space" in ran.stdout
    assert Bundle(folder).artifact("onnx-fp32").sha256 == first.sha256
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_target_of_another_kind_needs_no_edit_elsewhere(folder, monkeypatch, run_line):
    def export_notes(bundle: Bundle, place: Path, options: ExportOptions) -> Artifact:
        (place / "notes.txt").write_text("weights of " + bundle.spec.name)
        return Artifact(
            target="field-notes",
            precision="fp32",
            file="notes.txt",
            files=("notes.txt",),
            sha256=digest_of(place, ("notes.txt",)),
            source_sha256=bundle.manifest.weights_sha256,
            triton_backend="python",
            options={},
            versions={},
        )

    real_names, real_load = plugins.names, plugins.load
    monkeypatch.setattr(plugins, "names", lambda f: [*real_names(f), "field-notes"])
    monkeypatch.setattr(
        plugins,
        "load",
        lambda f, n: (
            SimpleNamespace(export=export_notes) if n == "field-notes" else real_load(f, n)
        ),
    )
    first, again = (export(folder, ExportOptions(target="field-notes")) for _ in range(2))
    assert (first.artifact, first.opset, first.triton_oldest) == ("field-notes-fp32", None, "none")
    assert (first.reused, again.reused) == (False, True)
    out = run_line("export", folder, "--target", "field-notes")
    assert out.splitlines()[1].endswith("MB")
    with pytest.raises(OptionError, match="an artifact for ONNX Runtime"):
        connect("ort@cpu", Bundle(folder), RuntimeOptions(artifact="field-notes-fp32"))
    assert run_line("predict", folder, "--help"), "the command line still stands"


@pytest.fixture
def run_line(capsys):
    """Run a command line that must succeed; its stdout."""

    def call(*args: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        assert caught.value.code == 0
        return str(capsys.readouterr().out)

    return call
