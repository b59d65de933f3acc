"""`annotate.audio`: what is decoded, what is refused, and what is said of a file that stops early."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

import annotate.audio
from annotate.audio import AudioError, decode


def tone(duration_s: float = 2.0, sample_rate: int = 44_100, frequency_hz: float = 440.0) -> np.ndarray:
    """A sine under slow noise, so that a shifted or repeated block shows."""
    rng = np.random.default_rng(1)
    time_s = np.arange(round(duration_s * sample_rate)) / sample_rate
    drift = np.repeat(rng.uniform(0.2, 0.8, len(time_s) // 400 + 1), 400)[: len(time_s)]
    return (drift * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def whole(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)


FORMATS = [
    ("x.wav", "PCM_U8", 44_100),
    ("x.wav", "PCM_16", 8_000),
    ("x.wav", "PCM_24", 96_000),
    ("x.wav", "PCM_32", 48_000),
    ("x.wav", "FLOAT", 192_000),
    ("x.flac", "PCM_16", 44_100),
    ("x.ogg", "VORBIS", 44_100),
    ("x.opus", "OPUS", 48_000),
    ("x.mp3", "MPEG_LAYER_III", 44_100),
    ("x.aiff", "PCM_16", 22_050),
]


def write(path: Path, samples: np.ndarray, sample_rate: int, subtype: str | None = None) -> Path:
    container = {".opus": "OGG", ".ogg": "OGG", ".mp3": "MP3"}.get(path.suffix)
    soundfile.write(path, samples, sample_rate, subtype=subtype, format=container)
    return path


@pytest.mark.parametrize(("name", "subtype", "sample_rate"), FORMATS)
def test_formats_in_small_blocks_equal_the_whole(
    name: str, subtype: str, sample_rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = tone(1.5, sample_rate)
    path = write(tmp_path / name, np.stack([signal, signal * 0.5], axis=1), sample_rate, subtype)
    monkeypatch.setattr(annotate.audio, "BLOCK_FRAMES", 10_007)
    decoded = decode(path, rates=[sample_rate, 16_000, 22_050])
    expected = whole(path)
    assert (decoded.sample_rate, decoded.channels, decoded.frames) == (sample_rate, 2, len(expected))
    assert decoded.duration_s == pytest.approx(len(expected) / sample_rate)
    assert decoded.truncated is None
    np.testing.assert_allclose(decoded.signals[sample_rate], expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1
    for rate in (16_000, 22_050):
        one_shot = soxr.resample(expected, sample_rate, rate, quality="HQ")
        assert decoded.signals[rate].dtype == np.float32
        assert decoded.signals[rate].shape == one_shot.shape
        np.testing.assert_allclose(decoded.signals[rate], one_shot, atol=1e-5)


def test_long_mp3_has_no_seams_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sine = 0.3 * np.sin(2 * np.pi * 440 * np.arange(441_000) / 44_100)  # its small frames lean on the bit reservoir
    path = write(tmp_path / "x.mp3", np.stack([sine, sine], axis=1), 44_100)
    monkeypatch.setattr(annotate.audio, "BLOCK_FRAMES", 10_007)
    np.testing.assert_allclose(decode(path, rates=[44_100]).signals[44_100], whole(path), atol=1e-6)


def test_mono_is_the_mean_of_all_channels(tmp_path: Path) -> None:
    channels = np.stack([tone() * gain for gain in (1.0, 0.5, 0.0, 0.25)], axis=1)
    path = write(tmp_path / "four.wav", channels, 44_100, "FLOAT")
    np.testing.assert_allclose(decode(path, rates=[44_100]).signals[44_100], tone() * 1.75 / 4, atol=1e-6)


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.wav", tone(), 44_100)
    assert decode(path, rates=[]).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert decode(path, rates=[]).signals == {}


def test_native_rate_is_held_only_where_asked(tmp_path: Path) -> None:
    assert set(decode(write(tmp_path / "x.wav", tone(), 44_100), rates=[22_050]).signals) == {22_050}


@pytest.mark.parametrize("name", [b"a b.mp3", b"q'u\"o.mp3", b"new\nline.mp3", b"\xff\xfe.mp3", "日本.mp3".encode()])
def test_any_file_name_decodes(name: bytes, tmp_path: Path) -> None:
    source = write(tmp_path / "plain.mp3", tone(), 44_100)
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    shutil.copy(source, path)
    assert decode(path, rates=[22_050]).duration_s == pytest.approx(2.0, abs=0.01)


def refused(path: Path, match: str) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        decode(path, rates=[22_050])
    assert "\n" not in str(caught.value)


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.wav", "does not exist")
    refused(tmp_path, "not a regular file")
    (tmp_path / "empty.mp3").touch()
    refused(tmp_path / "empty.mp3", r"empty \(0 bytes\)")
    for name in ("text.mp3", "text.wav", "text.flac", "text.opus"):
        (tmp_path / name).write_text("<html>not found</html>" * 100)
        refused(tmp_path / name, "not audio, or a format that is not supported")
    refused(write(tmp_path / "none.wav", tone(0), 44_100), "holds no samples")


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "short.wav", tone(0.2), 44_100), r"0\.20 s is under the minimum of 0\.5 s")
    decode(write(tmp_path / "enough.wav", tone(0.5), 44_100), rates=[22_050])
    refused(write(tmp_path / "low.wav", tone(1, 7_999), 7_999), "sample rate 7999 Hz is outside 8000–192000 Hz")
    refused(write(tmp_path / "high.wav", tone(1, 200_000), 200_000), "sample rate 200000 Hz")
    for bad in (np.nan, np.inf):
        broken = tone()
        broken[1000] = bad
        refused(write(tmp_path / "broken.wav", broken, 44_100, "FLOAT"), "NaN or infinite")
    opposed = np.stack([np.full(44_100, np.inf, np.float32), np.full(44_100, -np.inf, np.float32)], axis=1)
    refused(write(tmp_path / "opposed.wav", opposed, 44_100, "FLOAT"), "NaN or infinite")
    refused(write(tmp_path / "silent.wav", tone() * 1e-4, 44_100, "FLOAT"), "silent: no sample above -80 dBFS")
    decode(write(tmp_path / "quiet.wav", tone() * 1e-3, 44_100, "FLOAT"), rates=[22_050])
    refused(write(tmp_path / "cancel.wav", np.stack([tone(), -tone()], 1), 44_100, "FLOAT"), "channels cancel")
    with pytest.raises(ValueError, match="rate=0 Hz must be > 0"):
        decode(tmp_path / "quiet.wav", rates=[0])


@pytest.mark.parametrize("name", ["x.wav", "x.aiff", "x.flac", "x.ogg", "x.opus", "x.mp3"])
def test_truncated_file_is_decoded_as_far_as_it_goes(name: str, tmp_path: Path) -> None:
    sample_rate = 48_000
    path = write(tmp_path / name, tone(6, sample_rate), sample_rate, "OPUS" if name == "x.opus" else None)
    assert decode(path, rates=[sample_rate]).truncated is None
    complete = decode(path, rates=[sample_rate]).signals[sample_rate]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    decoded = decode(path, rates=[sample_rate])
    assert decoded.truncated is not None
    assert decoded.truncated.startswith("truncated: ")
    assert "\n" not in decoded.truncated
    assert 1.0 < decoded.duration_s < 4.0
    heard = decoded.signals[sample_rate][: round((decoded.duration_s - 0.1) * sample_rate)]
    np.testing.assert_allclose(heard, complete[: len(heard)], atol=0.02)


def test_ogg_cut_between_pages_is_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ogg", tone(6), 44_100)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"OggS")])
    assert "without its last page" in str(decode(path, rates=[]).truncated)


def test_broken_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    path = write(tmp_path / "x.flac", tone(6), 44_100)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(3000) + content[half + 3000 :])
    decoded = decode(path, rates=[44_100])
    assert decoded.truncated is not None
    assert decoded.duration_s > 2
    path.write_bytes(content[:2000] + bytes(len(content) - 2000))
    refused(path, "cannot be decoded beyond 0")


def test_lying_headers_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "x.flac", tone(), 44_100)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # no length stated, as a pipe writes it
    path.write_bytes(content)
    assert decode(path, rates=[]).frames == 88_200
    assert decode(path, rates=[]).truncated is None
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4  # 18 days
    path.write_bytes(content)
    assert decode(path, rates=[]).frames == 88_200
    assert "promises" in str(decode(path, rates=[]).truncated)
    wav = write(tmp_path / "x.wav", tone(), 44_100)
    content = bytearray(wav.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)  # ffmpeg to a pipe
    wav.write_bytes(content)
    assert decode(wav, rates=[]).frames == 88_200
    assert decode(wav, rates=[]).truncated is None


def test_mp3_whose_frames_are_miscounted_is_decoded_to_its_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 3 * 44_100).astype(np.float32)
    samples = np.concatenate([noise, tone(17) * 0.01])
    soundfile.write(tmp_path / "x.mp3", samples, 44_100, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    content = (tmp_path / "x.mp3").read_bytes()
    assert b"Xing" in content[:64]
    second = content.index(content[:2], 4)
    without_info = tmp_path / "without.mp3"
    without_info.write_bytes(content[second:])
    assert soundfile.info(without_info).duration < 10  # what libsndfile would stop at
    assert decode(without_info, rates=[]).duration_s == pytest.approx(20, abs=0.1)
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(content + content)
    assert decode(joined, rates=[]).duration_s == pytest.approx(40, abs=0.2)


def test_the_decoders_own_notes_stay_off_stderr(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mp3", tone(5), 44_100)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(5000) + content[half:])
    program = (
        "import sys; from annotate.audio import decode\n"
        f"decode({str(path)!r}, rates=[22050]); print('still here', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "still here\n"
