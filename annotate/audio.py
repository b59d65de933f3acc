"""Decoding: one audio file -> mono float32 signals at the rates that are needed, and what the file is.

Conventions
-----------
- A signal is mono (mean of the channels), float32, full scale ±1, shape ``(sample,)``; rates are in Hz.
- Samples are read in blocks and resampled as a stream (soxr, quality HQ), so the signal at the file's own rate is
  held only where that rate is asked for; nothing is allocated by what a header promises.
- A file that cannot be used raises `AudioError` with one line; a file that stops early is decoded as far as it goes
  and says so in `Decoded.truncated`.
- Silent: no sample of any channel, or none of the mono mix, exceeds `SILENCE_PEAK_DBFS` (−80 dB re full scale, just
  above dither and the last bit of 16-bit audio).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import stat
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

MIN_DURATION_S: Final = 0.5
SILENCE_PEAK_DBFS: Final = -80.0
MIN_SAMPLE_RATE: Final = 8_000  # Hz
MAX_SAMPLE_RATE: Final = 192_000  # Hz
TRUNCATION_TOLERANCE_S: Final = 0.1
BLOCK_FRAMES: Final = 2**20
BLOCK_SAMPLES: Final = 2**22  # frames × channels of one block: bounds the block of a file with many channels
UNKNOWN_FRAMES: Final = 2**62  # libsndfile's way to say that the header gives no length

Signal = npt.NDArray[np.float32]


class AudioError(ValueError):
    """An audio file that cannot be used; the message is one line that says why."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What `decode` returns: the signals by rate, and the file's own properties."""

    signals: dict[int, Signal]  # Hz -> (sample,)
    duration_s: float  # of what was decoded
    sample_rate: int  # Hz, of the file
    channels: int
    frames: int  # decoded, at the file's rate
    sha256: str  # hex, of the file's bytes
    truncated: str | None  # one line where the file stops early


def decode(path: str | os.PathLike[str], *, rates: Sequence[int]) -> Decoded:
    """Decode a file to mono float32 and resample it to each rate.

    Parameters
    ----------
    path : path
        WAV, FLAC, Ogg Vorbis, Opus, MP3 or AIFF, 8–192 kHz; any file name, also one that is not UTF-8.
    rates : sequence of int
        Sample rates in Hz. The file's own rate is passed through without resampling.

    Returns
    -------
    Decoded
        ``signals[rate]`` has shape ``(sample,)``; equal to ``soxr.resample(mono, ..., quality="HQ")`` within 1e-5.

    Raises
    ------
    AudioError
        Missing, empty or undecodable file; no samples; NaN or infinite samples; shorter than `MIN_DURATION_S`;
        silent; a sample rate outside 8–192 kHz; a file that vanishes, changes or becomes unreadable meanwhile.
    ValueError
        A rate that is not positive.
    """
    for rate in rates:
        if rate <= 0:
            raise ValueError(f"rate={rate} Hz must be > 0")
    name = os.fsencode(path)
    before = _state(name)
    failure: AudioError | None = None
    try:
        decoded = _decode_unwatched(name, rates)
    except AudioError as error:
        failure = error
    except OSError as error:
        failure = AudioError(f"cannot be read: {error.strerror or error}")
    after = _state(name)
    if before != after:
        what = "vanished" if after is None else "was changed"
        raise AudioError(f"{what} while it was being read") from None
    if failure is not None:
        raise failure from None
    return decoded


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes in hex.

    Raises
    ------
    AudioError
        A file that is missing, empty, not a regular file, or cannot be read.
    """
    return _digest(os.fsencode(path))[0]


def stated_duration_s(path: str | os.PathLike[str]) -> float | None:
    """Seconds that a file's header states, None where nothing can be read; a hint, headers lie."""
    try:
        with soundfile.SoundFile(os.fsencode(path)) as audio:
            return float(audio.frames / audio.samplerate) if audio.frames < UNKNOWN_FRAMES else None
    except (soundfile.LibsndfileError, OSError, RuntimeError, ZeroDivisionError):
        return None


def _state(name: bytes) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None where `_digest` says what is wrong."""
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _decode_unwatched(name: bytes, rates: Sequence[int]) -> Decoded:
    sha256, head = _digest(name)
    is_mp3 = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >> 5 == 7) or name.lower().endswith(b".mp3")
    with _quiet_c_stderr() if is_mp3 else contextlib.nullcontext():
        return _decode(name, sha256, rates, is_mp3=is_mp3)


def _decode(name: bytes, sha256: str, rates: Sequence[int], *, is_mp3: bool) -> Decoded:
    with contextlib.ExitStack() as stack:
        audio, promised = _open(name, is_mp3=is_mp3)
        stack.enter_context(audio)
        sample_rate, channels = int(audio.samplerate), int(audio.channels)
        if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
            raise AudioError(f"sample rate {sample_rate} Hz is outside {MIN_SAMPLE_RATE}–{MAX_SAMPLE_RATE} Hz")
        buffers = {rate: bytearray() for rate in rates}
        streams = {
            rate: soxr.ResampleStream(sample_rate, rate, 1, dtype="float32", quality="HQ")
            for rate in buffers
            if rate != sample_rate
        }
        frames, peak, mono_peak = 0, 0.0, 0.0
        blocks = _Blocks(audio)
        for block in blocks:
            mono = _mono(block)
            if not np.isfinite(mono).all():
                raise AudioError("holds NaN or infinite samples")
            frames += len(mono)
            peak = max(peak, float(np.abs(block).max()))
            mono_peak = max(mono_peak, float(np.abs(mono).max()))
            for rate, buffer in buffers.items():
                buffer += (streams[rate].resample_chunk(mono) if rate in streams else mono).tobytes()
        for rate, stream in streams.items():
            buffers[rate] += stream.resample_chunk(np.zeros(0, np.float32), last=True).tobytes()

    duration_s = frames / sample_rate
    if blocks.error and duration_s < MIN_DURATION_S:
        raise AudioError(f"cannot be decoded beyond {duration_s:.2f} s: {blocks.error}")
    if frames == 0:
        raise AudioError("holds no samples")
    if duration_s < MIN_DURATION_S:
        raise AudioError(f"{duration_s:.2f} s is under the minimum of {MIN_DURATION_S} s")
    threshold = 10 ** (SILENCE_PEAK_DBFS / 20)
    if peak < threshold:
        raise AudioError(f"silent: no sample above {SILENCE_PEAK_DBFS:.0f} dBFS")
    if mono_peak < threshold:
        raise AudioError(f"silent in mono: its channels cancel to below {SILENCE_PEAK_DBFS:.0f} dBFS")
    return Decoded(
        signals={rate: np.frombuffer(buffer, np.float32) for rate, buffer in buffers.items()},
        duration_s=duration_s,
        sample_rate=sample_rate,
        channels=channels,
        frames=frames,
        sha256=sha256,
        truncated=_truncation(name, audio.format, frames, sample_rate, promised, blocks.error),
    )


def _digest(name: bytes) -> tuple[str, bytes]:
    """Give the SHA-256 of a file's bytes and its first bytes, or say why there is nothing to read."""
    digest = hashlib.sha256()
    head = b""
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise AudioError("is not a regular file")
        if status.st_size == 0:
            raise AudioError("is empty (0 bytes)")
        with open(name, "rb") as file:
            while chunk := file.read(2**20):
                head = head or chunk[:16]
                digest.update(chunk)
    except FileNotFoundError:
        raise AudioError("does not exist") from None
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from None
    return digest.hexdigest(), head


def _open(name: bytes, *, is_mp3: bool) -> tuple[Any, int | None]:
    """Open a file for decoding; second, the frames that it should hold, where that is known."""
    try:
        audio = _ForwardFile(name)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(_reason(error)) from None
    if audio.format == "FLAC":
        return audio, audio.frames if audio.frames < UNKNOWN_FRAMES else None
    if not is_mp3 or audio.format != "MP3":
        return audio, None
    # libsndfile stops where the info frame or mpg123's guess from the first frames says: a variable bit rate without
    # an info frame, or two files joined, would lose their end without a word. So the frames are counted, and a wrong
    # count mended.
    count = _count_mp3_frames(name)
    if count is None:
        return audio, None
    missing_s = (count.n_frames * count.frame_samples - audio.frames) / audio.samplerate
    if missing_s <= TRUNCATION_TOLERANCE_S:
        return audio, audio.frames if count.declared is not None else None
    audio.close()
    try:
        return _ForwardFile(io.BytesIO(_with_frame_count(name, count))), None
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(_reason(error)) from None


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read once, forwards.

    soundfile seeks to where it already is after every read of a seekable file; in an MP3 that can land elsewhere and
    break the signal at each block, and at the end of a FLAC without a stated length it fails.
    """

    def seekable(self) -> bool:
        """Say no, whatever the file is."""
        return False


class _Blocks:
    """The decoded blocks of a file, shape ``(frame, channel)``; `error` says what ended them before the file's end."""

    def __init__(self, audio: Any) -> None:
        self.audio = audio
        self.error: str | None = None

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        size = max(1, min(BLOCK_FRAMES, BLOCK_SAMPLES // self.audio.channels))
        out = np.empty((size, self.audio.channels), np.float32)
        while self.error is None:
            out.fill(np.nan)  # after an error the frames that did arrive are those before the first NaN
            try:
                block = self.audio.read(out=out)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                gaps = np.flatnonzero(np.isnan(out[:, 0]))
                block = out[: gaps[0]] if len(gaps) else out
                self.error = _reason(error)
            if len(block):
                yield block
            if len(block) < len(out):
                break


def _mono(block: npt.NDArray[np.float32]) -> Signal:
    mono = block[:, 0].copy()
    if block.shape[1] > 1:
        with np.errstate(all="ignore"):
            for channel in range(1, block.shape[1]):
                mono += block[:, channel]
            mono /= np.float32(block.shape[1])
    return mono


def _truncation(
    name: bytes, container: str, frames: int, sample_rate: int, promised: int | None, error: str | None
) -> str | None:
    decoded_s = frames / sample_rate
    if promised is None and container in {"WAV", "WAVEX", "AIFF"}:
        share = _share_of_chunk(name, big_endian=container == "AIFF")
        promised = round(frames / share) if share else None
    if promised is not None and (promised - frames) / sample_rate > TRUNCATION_TOLERANCE_S:
        cause = f" ({error})" if error else ""
        return f"truncated: the header promises {promised / sample_rate:.2f} s, {decoded_s:.2f} s could be decoded{cause}"
    if error:
        return f"truncated: decoding stopped at {decoded_s:.2f} s: {error}"
    if container == "OGG" and not _ogg_is_complete(name):
        return f"truncated: the Ogg stream stops without its last page, {decoded_s:.2f} s could be decoded"
    return None


def _reason(error: Exception) -> str:
    code = getattr(error, "code", None)
    text = str(getattr(error, "error_string", "")) or str(error)
    if code in (1, 7):  # unrecognised; and what libsndfile reports for an MP3 without a single frame
        text = "not audio, or a format that is not supported"
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".") or "the decoder failed"


def _share_of_chunk(name: bytes, *, big_endian: bool) -> float | None:
    """Share of the declared sample chunk of a WAV or AIFF file that is there; None where nothing is declared."""
    order, wanted = (">", b"SSND") if big_endian else ("<", b"data")
    size = os.path.getsize(name)
    with open(name, "rb") as file:
        if file.read(4) not in (b"RIFF", b"FORM"):
            return None
        position = 12
        while position + 8 <= size:
            file.seek(position)
            kind, length = struct.unpack(order + "4sI", file.read(8))
            if kind == wanted:
                if length in (0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFE) or length >= 0xFFFFFF00:  # written by a pipe: unknown
                    return None
                return min(1.0, (size - position - 8) / length) or None
            position += 8 + length + length % 2
    return None


def _ogg_is_complete(name: bytes) -> bool:
    """Whether the last page of an Ogg file is whole and marked as the last one (RFC 3533)."""
    size = os.path.getsize(name)
    with open(name, "rb") as file:
        file.seek(max(0, size - 2 * 65_307))
        tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return False
    n_segments = tail[at + 26]
    lacing = tail[at + 27 : at + 27 + n_segments]
    return bool(tail[at + 5] & 4) and len(lacing) == n_segments and at + 27 + n_segments + sum(lacing) <= len(tail)


@dataclass(frozen=True)
class _Mp3Count:
    n_frames: int  # audio frames in the file
    frame_samples: int
    first: int  # byte offset of the first frame
    declared: int | None  # frames by the info frame
    declared_at: int | None  # byte offset of that number


_MP3_KBPS: Final = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mp3_frame(view: mmap.mmap | bytes, at: int) -> tuple[int, int, int] | None:
    """Read an MPEG audio frame header (ISO 11172-3): bytes of the frame, samples of the frame, stream marker."""
    if at + 4 > len(view) or view[at] != 0xFF or view[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = view[at + 1] >> 3 & 3, 4 - (view[at + 1] >> 1 & 3)
    bit_rate, rate, padding = view[at + 2] >> 4, view[at + 2] >> 2 & 3, view[at + 2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or bit_rate in (0, 15):
        return None
    generation = 1 if version == 3 else 2
    hertz = _MP3_RATES[version][rate]
    samples = 384 if layer == 1 else 576 if layer == 3 and generation == 2 else 1152
    bits_per_s = 1000 * _MP3_KBPS[generation, layer][bit_rate]
    length = (12 * bits_per_s // hertz + padding) * 4 if layer == 1 else samples // 8 * bits_per_s // hertz + padding
    return length, samples, version << 8 | layer << 4 | rate


def _count_mp3_frames(name: bytes) -> _Mp3Count | None:
    """Count the frames of an MP3 by walking their headers; None where it is not a plain MP3."""
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        at = 0
        while view[at : at + 3] == b"ID3" and at + 10 <= len(view):
            size = view[at + 6] << 21 | view[at + 7] << 14 | view[at + 8] << 7 | view[at + 9]
            at += 10 + size + (10 if view[at + 5] & 0x10 else 0)
        at = _next_mp3_frame(view, at, None)
        frame = _mp3_frame(view, at) if at >= 0 else None
        if frame is None:
            return None
        first, samples, marker = at, frame[1], frame[2]
        declared = declared_at = None
        info = view[at : at + frame[0]]
        for tag in (b"Xing", b"Info"):
            offset = info.find(tag, 4, 48)
            if offset >= 0:
                at += frame[0]
                if info[offset + 7 : offset + 8] and info[offset + 7] & 1:
                    declared_at = first + offset + 8
                    declared = int.from_bytes(view[declared_at : declared_at + 4], "big")
                break
        n_frames = 0
        while at >= 0:
            frame = _mp3_frame(view, at)
            if frame is None or frame[2] != marker:
                at = _next_mp3_frame(view, at + 1, marker)
                continue
            if at + frame[0] <= len(view):
                n_frames += 1
            at += frame[0]
    return _Mp3Count(n_frames, samples, first, declared, declared_at)


def _next_mp3_frame(view: mmap.mmap, at: int, marker: int | None) -> int:
    """Byte offset of the next header that is followed by another of its kind within 64 KiB; -1 where there is none."""
    stop = min(len(view), at + 65_536)
    while 0 <= at < stop:
        at = view.find(b"\xff", at, stop)
        if at < 0:
            break
        frame = _mp3_frame(view, at)
        if frame is not None and marker in (None, frame[2]):
            following = _mp3_frame(view, at + frame[0])
            if following is not None and following[2] == frame[2]:
                return at
        at += 1
    return -1


def _with_frame_count(name: bytes, count: _Mp3Count) -> bytes:
    """Give the bytes of an MP3 with an info frame that states the counted number of frames."""
    with open(name, "rb") as file:
        content = bytearray(file.read())
    if count.declared_at is not None:
        content[count.declared_at : count.declared_at + 4] = count.n_frames.to_bytes(4, "big")
        return bytes(content)
    header = bytearray(content[count.first : count.first + 4])
    header[1] |= 1  # no checksum
    header[2] = header[2] & 0x0D | 0x90  # a bit rate whose frame has room for the tag
    frame = _mp3_frame(bytes(header), 0)
    if frame is None:
        return bytes(content)
    mono = header[3] >> 6 == 3
    side_bytes = (17 if mono else 32) if frame[1] == 1152 else (9 if mono else 17)
    info = bytes(header) + bytes(side_bytes) + b"Xing" + struct.pack(">II", 1, count.n_frames)
    return info.ljust(frame[0], b"\0") + bytes(content[count.first :])


_quiet_lock = threading.Lock()
_quiet: dict[str, int] = {"depth": 0, "saved": -1}


@contextlib.contextmanager
def _quiet_c_stderr() -> Iterator[None]:
    """Keep mpg123's notes, which it writes to file descriptor 2 by itself, off the user's terminal."""
    with _quiet_lock:
        if _quiet["depth"] == 0:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            with contextlib.suppress(OSError):  # no descriptor 2: nothing to keep quiet
                _quiet["saved"] = os.dup(2)
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 2)
                os.close(null)
        _quiet["depth"] += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet["depth"] -= 1
            if _quiet["depth"] == 0 and _quiet["saved"] >= 0:
                os.dup2(_quiet["saved"], 2)
                os.close(_quiet["saved"])
                _quiet["saved"] = -1
