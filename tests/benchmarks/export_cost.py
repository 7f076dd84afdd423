"""What `tlexport export` costs beside a script that only builds and exports the same network.

Whole processes in turns: CPU seconds (user + system) and peak memory of each, and the ratios of
their medians. The limits of the project: 1.2 times the CPU seconds, 1.1 times the memory.

    python tests/benchmarks/export_cost.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

BERT = """
import sys, torch, transformers
config = transformers.BertConfig(num_labels=2)
model = transformers.BertForSequenceClassification(config).eval()
ids = torch.ones(2, 16, dtype=torch.int64)
batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
program = torch.onnx.export(
    model, (), kwargs={"input_ids": ids, "attention_mask": ids}, dynamo=True, verbose=False,
    dynamic_shapes=dict.fromkeys(("input_ids", "attention_mask"), {0: batch, 1: sequence}),
)
program.save(sys.argv[1])
"""

RESNET = """
import sys, torch, torchvision
model = torchvision.models.resnet50(num_classes=2).eval()
images = torch.zeros(2, 3, 224, 224)
program = torch.onnx.export(
    model, (images,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
)
program.save(sys.argv[1])
"""


def bundle_of(kind: str, folder: Path) -> Path:
    """A bundle with random weights: BERT-base on two texts, ResNet-50 on two images."""
    from tlexport.options import TrainOptions
    from tlexport.stages.train import train

    data = folder / f"{kind}-data"
    if kind == "BERT-base":
        import tiny_text
        import transformers

        place = folder / "bert"
        tiny_text.tokenizer(place, decoder=False)
        transformers.BertModel(transformers.BertConfig()).save_pretrained(place)
        data.mkdir()
        rows = [f"text {number} {'so ' * number},{'ab'[number % 2]}" for number in range(8)]
        (data / "train.csv").write_text("text,label\n" + "\n".join(rows))
        options = TrainOptions(
            task="text-classification", backbone=f"transformers/{place}", trials=1, golden=2
        )
    else:
        import digits

        digits.write(data, per_class=2)
        options = TrainOptions(
            backbone="torchvision/resnet50", weights="random", trials=1, golden=2
        )
    train(data, folder / f"{kind}.bundle", options)
    return folder / f"{kind}.bundle"


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak MB of a process."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, command
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    table = Table("network", "", "CPU s", "peak MB", "CPU ratio", "memory ratio")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TLEXPORT_CACHE"] = str(folder / "cache")
        for kind, script in (("BERT-base", BERT), ("ResNet-50", RESNET)):
            ours = [sys.executable, "-m", "tlexport", "export", "--force"]
            ours.append(str(bundle_of(kind, folder)))
            plain = [sys.executable, "-c", script, str(folder / "plain.onnx")]
            found: dict[str, list[tuple[float, float]]] = {"tlexport export": [], "script": []}
            for turn in range(rounds):
                pairs = [("tlexport export", ours), ("script", plain)]
                for who, command in pairs if turn % 2 else reversed(pairs):
                    found[who].append(measured(command))
            middle = {
                who: [statistics.median(column) for column in zip(*values, strict=True)]
                for who, values in found.items()
            }
            for who, (cpu, memory) in middle.items():
                share = [a / b for a, b in zip(middle[who], middle["script"], strict=True)]
                table.add_row(
                    kind, who, f"{cpu:.2f}", f"{memory:.0f}", f"{share[0]:.2f}", f"{share[1]:.2f}"
                )
    Console().print(table)


if __name__ == "__main__":
    main()
