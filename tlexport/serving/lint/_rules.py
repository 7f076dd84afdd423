"""The rules: their names, how grave each is, what each says."""

from __future__ import annotations

from typing import Literal

Severity = Literal["error", "warning"]

RULES: dict[str, tuple[Severity, str]] = {
    # the folder
    "model-name": ("error", "a model's folder has a name that a server can bear"),
    "config-parse": ("error", "config.pbtxt is the text of a model configuration"),
    "config-name": ("error", "`name` is the folder's"),
    "backend": ("error", "`backend` or `platform` is one that there is, or can be found out"),
    "version-folder": ("error", "a version's folder is a plain number"),
    "version-policy": ("error", "the policy leaves a version to serve"),
    "version-policy-partly": ("warning", "every version that the policy names is there"),
    "model-file": ("error", "the model's file lies where the backend looks for it"),
    "python-class": ("error", "a Python model has the class that the server looks for"),
    "python-syntax": ("warning", "a Python model parses"),
    # the file
    "onnx-file": ("error", "the model's file is a whole ONNX file"),
    "onnx-ir": ("error", "the release reads the file's IR version"),
    "onnx-opset": ("error", "the release reads the file's opset of every domain"),
    "onnx-operator": ("error", "every operator is one of its domain's, at that opset"),
    "onnx-old-opset": ("warning", "ONNX Runtime has kernels for this opset (7 and newer)"),
    "data-file": ("error", "external data is there, by the name in the file"),
    "data-range": ("error", "external data is as long as the file says"),
    "data-path": ("error", "external data lies in the model's own folder"),
    # inputs and outputs
    "tensor-described": ("error", "each tensor has a name, a type, and dims of 1 or more, or -1"),
    "tensor-unknown": ("error", "each tensor is one of the model's"),
    "tensor-twice": ("error", "no tensor is there twice"),
    "input-missing": ("error", "every input of the model is listed"),
    "tensor-dtype": ("error", "the type is the model's, and one that the backend serves"),
    "tensor-dims": ("error", "dims fit the model's: an input's loosely, an output's exactly"),
    "first-axis": ("error", "with batching, the first axis of each tensor is free"),
    "reshape": ("error", "reshape keeps the number of elements"),
    "optional-batched": ("error", "no optional inputs with batching"),
    "completed": ("warning", "the server has nothing to complete on its own"),
    # labels
    "label-file": ("error", "the label file is there"),
    "label-path": ("error", "the label file lies in the model's own folder"),
    "label-count": ("error", "as many labels as the output has elements"),
    "label-text": ("error", "labels are lines of UTF-8 that end with a line feed alone"),
    "label-shape": ("warning", "labels are for an output of one axis"),
    # how it is served
    "max-batch": ("error", "max_batch_size is 0 or more"),
    "preferred-batch": ("error", "preferred batch sizes are from 1 to max_batch_size"),
    "priority": ("error", "priorities are from 1 to priority_levels"),
    "batching-of-one": ("warning", "dynamic batching has a max_batch_size to fill"),
    "instance-kind": ("error", "instances on the CPU name no GPUs"),
    "instance-count": ("warning", "instances are counted from 1"),
    "instance-gpu": ("warning", "instances on a GPU are for a machine that has one"),
    "thread-default": ("warning", "a thread count is set: without it, each instance takes all"),
    "thread-budget": ("warning", "instances x threads are within the cores"),
    "parameter": ("error", "parameters have values that the backend reads"),
    "accelerator": ("error", "execution accelerators are ones that the backend knows"),
    "graph-level": ("warning", "optimization.graph.level means what it seems to"),
    "sequence-control": ("error", "sequence controls are inputs of the model, with their values"),
    "embedded": ("warning", "the server without Docker serves it, too"),
    "response-cache": ("warning", "a server with --cache-config keeps answers"),
    "op-library": ("warning", "a library of operators is there"),
    # warm-up
    "warmup-batch": ("error", "a warm-up's batch is within max_batch_size"),
    "warmup-input": ("error", "a warm-up has the model's inputs, all of them"),
    "warmup-shape": ("error", "a warm-up's inputs have the shape and type of the model's"),
    "warmup-data": ("error", "a warm-up's data is there, and long enough"),
    "warmup-path": ("error", "a warm-up's data lies in the model's own folder"),
    "warmup-largest": ("warning", "the largest batch is warmed up, too"),
    # ensembles
    "ensemble-field": ("error", "an ensemble has steps, and nothing that only a model has"),
    "ensemble-step": ("error", "each step names a model and version that is served here"),
    "ensemble-map": ("error", "a step's tensors are its model's, and all of its inputs"),
    "ensemble-tensor": ("error", "each tensor is made once, used, and not by what it needs"),
    "ensemble-type": ("error", "who makes a tensor and who takes it agree on its type"),
    "ensemble-shape": ("error", "who makes a tensor and who takes it agree on its shape"),
    "ensemble-batch": ("error", "no step takes smaller batches than the ensemble"),
    "ensemble-batching": ("warning", "the ensemble and its steps all batch, or none does"),
}
"""Name -> (how grave, what holds where it is kept). An error is what a server refuses, answers
wrongly for, or reads outside the model's folder; a warning is legal and costs something."""
