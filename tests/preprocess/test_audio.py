"""Any audio file to the samples a network wants, and a reason where there are none."""

from __future__ import annotations

import ast
import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tlexport.preprocess import audio

RATE = 16_000
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wav8": ("WAV", "PCM_U8"),
    "float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
ISSUED = ("wav", "flac", "vorbis", "opus", "mp3")


def numbers(rate=RATE, longest=60 * RATE, shortest=400, mask=True):
    return {"rate": rate, "longest": longest, "shortest": shortest, "mask": mask}


def saved(samples: np.ndarray, rate: int = RATE, kind: str = "wav", **options) -> bytes:
    """A file of float samples [frames] or [frames, channels], written bit by bit.

    Large blocks overflow the stack of libsndfile's Vorbis encoder.
    """
    stream, (format_, subtype) = io.BytesIO(), KINDS[kind]
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(
        stream, "w", rate, channels, subtype, format=format_, **options
    ) as file:
        for start in range(0, len(samples), 10_000):
            file.write(samples[start : start + 10_000])
    return stream.getvalue()


def tone(hertz: float, seconds: float, rate: int = RATE, height: float = 0.5) -> np.ndarray:
    return height * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture(scope="module")
def word(spoken) -> np.ndarray:
    """A person (flite's rms, cut from recordings) says "yes": float64 [samples], 16 kHz."""
    samples, rate = soundfile.read(spoken / "yes" / "rms.wav")
    assert rate == RATE
    assert np.abs(samples).max() > 0.2
    return samples


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        *[("wav", 90), ("wav24", 90), ("float", 90), ("flac", 90), ("wav8", 20)],
        *[("vorbis", 12), ("opus", 10), ("mp3", 12)],
    ],
)
def test_every_format_gives_the_same_word(word, kind, least):
    out = audio.load(saved(word, kind=kind), numbers())
    assert out.dtype == np.float32
    assert out.shape == word.shape, "encoders pad, decoders know by how much"
    noise = np.sum((out - word) ** 2) + 1e-12
    assert 10 * np.log10(np.sum(word**2) / noise) > least


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_is_resampled_and_keeps_pitch_and_height(rate):
    out = audio.load(saved(tone(440, 0.5, rate), rate, "float"), numbers())
    assert abs(out.size - RATE // 2) <= 1
    inner = slice(800, -800)
    assert np.abs(out - tone(440, 0.5)[: out.size])[inner].max() < 1e-4


def test_what_the_new_rate_cannot_carry_is_gone_and_does_not_come_back_lower():
    out = audio.load(saved(tone(12_000, 0.5, 44_100), 44_100, "float"), numbers())
    assert np.abs(out[800:-800]).max() < 1e-4


def test_the_rate_of_the_network_is_obeyed(word):
    assert audio.load(saved(word), numbers(rate=8_000)).size == round(word.size / 2)


def test_channels_are_averaged():
    left, right = tone(300, 0.2), tone(500, 0.2)
    out = audio.load(saved(np.stack([left, right], 1), kind="float"), numbers())
    assert np.abs(out - (left + right) / 2).max() < 1e-6
    six = np.stack([left, *[np.zeros_like(left)] * 5], 1)
    assert np.abs(audio.load(saved(six, kind="float"), numbers()) - left / 6).max() < 1e-6


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_cut_is_the_head_of_the_whole_and_the_rest_is_not_decoded(rate):
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(4 * rate)).astype(np.float32)
    whole = audio.load(saved(noise, rate, "float"), numbers())
    noise[-1] = np.nan
    cut = audio.load(saved(noise, rate, "float"), numbers(longest=RATE))
    assert cut.size == RATE
    assert np.abs(cut - whole[:RATE]).max() < 1e-6


def test_short_clips_are_padded_on_the_right():
    out = audio.load(saved(np.full(7, 0.5)), numbers(shortest=400))
    assert np.array_equal(out, [0.5] * 7 + [0.0] * 393)
    one = audio.load(saved(np.full(1, 0.5), 192_000), numbers(shortest=400))
    assert one.shape == (400,)


def test_a_minute_and_a_twentieth_of_a_second():
    for seconds in (0.05, 60.0):
        out = audio.load(saved(tone(440, seconds, 44_100), 44_100), numbers())
        assert out.size == seconds * RATE


def test_silence_is_silence_in_every_format():
    for kind in KINDS:
        out = audio.load(saved(np.zeros(RATE), kind=kind), numbers())
        assert np.abs(out).max() < 1e-3, kind
        assert kind in ("opus", "vorbis", "mp3") or not out.any(), kind


def test_overshoot_is_clipped():
    square = np.sign(tone(440, 0.5, 44_100)) * 0.999
    out = audio.load(saved(square, 44_100), numbers())
    assert np.abs(out).max() == 1.0, "resampling rings at the edges"
    out = audio.load(saved(np.array([1.5, -1.5, 0.5] * 200), kind="float"), numbers())
    assert np.array_equal(out[:3], [1.0, -1.0, 0.5])


def test_samples_of_another_unit_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"samples up to 1.2e\+04, where .* is -1 \.\. 1"):
        audio.load(saved(np.array([1.0, -12_000.0] * 300), kind="float"), numbers())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(value):
    samples = tone(440, 0.1)
    samples[77] = value
    with pytest.raises(ValueError, match="not finite"):
        audio.load(saved(samples, kind="float"), numbers())


@pytest.mark.parametrize("kind", ISSUED)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_told_as_such(word, kind, share):
    whole = saved(word, kind=kind)
    with pytest.raises(ValueError, match="cut short"):
        audio.load(whole[: int(share * len(whole))], numbers())


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_does_not_know_its_length(word, size):
    data = bytearray(saved(word))
    assert data[36:40] == b"data"
    data[40:44] = struct.pack("<I", size)
    assert np.array_equal(audio.load(bytes(data), numbers()), audio.load(saved(word), numbers()))


def test_chunks_before_and_behind_the_samples_are_passed_over(word):
    data = saved(word)
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\0"
    out = audio.load(data[:12] + odd + data[12:] + odd, numbers())
    assert np.array_equal(out, audio.load(data, numbers()))


def test_an_mp3_without_an_index_is_read_with_any_tags_around_it(word):
    whole = saved(np.tile(word, 4), kind="mp3", bitrate_mode="CONSTANT", compression_level=0.5)
    assert b"Info" in whole[:100]
    bare = whole[whole.index(whole[:3], 100) :]
    plain = audio.load(bare, numbers())
    assert abs(plain.size - 4 * word.size) < 4_000
    tag = b"ID3\3\0\0\0\0\1\0" + bytes(128)
    assert np.array_equal(audio.load(tag + bare, numbers()), plain)
    assert audio.load(tag + whole + b"TAG" + bytes(125), numbers()).size == 4 * word.size


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "an empty file"),
        (b"this is a text, not a sound\n" * 20, "no audio in a format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "no audio in a format"),
        (bytes(5_000), "no audio in a format"),
        (b"RIFF\x24\0\0\0WAVE", r"\w+"),
        (b"fLaC" + bytes(60), r"\w+"),
        (b"OggS" + bytes(60), r"\w+"),
        (b"ID3", r"\w+"),
        (b"\xff\xfb\x90\xc4", r"\w+"),
    ],
)
def test_what_is_no_audio_is_refused_with_a_reason_that_names_no_memory_address(
    tmp_path, data, why
):
    (tmp_path / "yes.wav").write_bytes(data)
    for ask in (audio.load, audio.length):
        with pytest.raises(ValueError, match=why if ask is audio.load else r"\w+") as caught:
            ask(tmp_path / "yes.wav", numbers())
        assert "0x" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_without_samples_is_refused():
    for kind in ("wav", "float", "vorbis"):
        with pytest.raises(ValueError, match="no samples"):
            audio.load(saved(np.zeros(0), kind=kind), numbers())


def test_a_stream_of_unknown_length_is_told_as_such(word):
    data = bytearray(saved(word, kind="flac"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with pytest.raises(ValueError, match="unknown length"):
        audio.load(bytes(data), numbers())


def test_a_senseless_rate_is_refused(word):
    data = bytearray(saved(word))
    data[24:28] = struct.pack("<I", 1)
    with pytest.raises(ValueError, match="1 Hz"):
        audio.load(bytes(data), numbers())


def test_a_missing_file_is_refused(tmp_path):
    for ask in (audio.load, audio.length):
        with pytest.raises(ValueError, match="No such file"):
            ask(tmp_path / "none.wav", numbers())


@pytest.mark.parametrize("kind", ISSUED)
def test_random_damage_gives_samples_or_a_reason_and_nothing_else(word, kind):
    rng = np.random.default_rng(0)
    whole = saved(word, kind=kind)
    read = 0
    for turn in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, 60 if turn % 2 else len(data), 4):
            data[at] = int(rng.integers(256))
        try:
            out = audio.load(bytes(data), numbers())
        except ValueError as error:
            assert str(error)
        else:
            read += 1
            assert out.dtype == np.float32
            assert 400 <= out.size <= 60 * RATE
            assert np.abs(out).max() <= 1
    assert read < 60, "damage was done"


def test_bytes_and_path_give_the_same(word, tmp_path):
    data = saved(word, 22_050, "flac")
    (tmp_path / "a.flac").write_bytes(data)
    assert np.array_equal(audio.load(data, numbers()), audio.load(tmp_path / "a.flac", numbers()))


def test_a_batch_is_as_long_as_its_longest_clip():
    clips = [np.full(size, 0.5, np.float32) for size in (3, 5, 1)]
    found = audio.batch(clips, numbers())
    assert found["samples"].dtype == np.float32
    assert found["attention_mask"].dtype == np.bool_
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    assert np.array_equal(found["samples"], found["attention_mask"] * np.float32(0.5))
    assert set(audio.batch(clips, numbers(mask=False))) == {"samples"}
    assert audio.batch([], numbers())["attention_mask"].shape == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_is_known_without_decoding(word, kind):
    data = saved(word, kind=kind)
    assert abs(audio.length(data, numbers()) - audio.load(data, numbers()).size) <= 1
    assert audio.length(data, numbers(longest=500)) == 500
    assert audio.length(saved(word[:10], kind=kind), numbers()) == 400


def test_suffixes_are_of_the_formats_that_were_promised():
    found = audio.suffixes()
    assert found >= {".wav", ".flac", ".ogg", ".mp3"}
    assert not found & {".txt", ".png", ".mp4"}


def test_the_file_needs_numpy_soundfile_and_soxr_alone():
    tree = ast.parse(Path(audio.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or ".").split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "soundfile", "soxr"}


def test_a_copy_of_the_file_elsewhere_gives_the_same_samples(word, tmp_path):
    shutil.copyfile(audio.__file__, tmp_path / "audio.py")
    (tmp_path / "a.mp3").write_bytes(saved(word, 44_100, "mp3"))
    code = (
        "import sys; sys.path.insert(0, '.'); import audio, numpy as np; from pathlib import Path;"
        f"np.save('out.npy', audio.load(Path('a.mp3'), {numbers()!r}));"
        "assert not [m for m in sys.modules if m.startswith(('tlexport', 'torch'))]"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", code]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=60)
    ours = audio.load(tmp_path / "a.mp3", numbers())
    assert np.array_equal(np.load(tmp_path / "out.npy"), ours)
