"""Compose and render small pieces whose perceptual cues are known, and write them as a corpus in Emotify layout.

Conventions
-----------
- Times are in seconds, pitches are MIDI numbers (60 = C4, 69 = A4 = 440 Hz), loudness is RMS in dB re full scale.
- A bar has four beats of four slots; a phrase has four bars; one slot is a sixteenth note, ``15 / tempo_bpm`` s.
- Scale degrees count from 0 (tonic). Minor is natural minor, so a major piece and its minor twin share every degree.
- Randomness comes from one generator a purpose, drawn in a fixed order for whole phrases: changing one cue never
  shifts the numbers that another cue sees, and a longer piece begins with the shorter one.
- The layers in the order in which ``Cues.layers`` adds them: melody, chords, bass, arpeggio, percussion. Dissonance
  doubles melody notes in a further voice, ``clash``, which has the rhythm of the melody and so is no rhythmic layer.

What `write_corpus` writes::

    folder/
      data.csv                 one row a listener and track, columns and ids as Emotify's
      cues.csv                 one row a track: the cues that it was composed from
      classical/1.mp3 2.mp3 …  rock/1.mp3 …  electronic/1.mp3 …  pop/1.mp3 …
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import mutagen.flac
import mutagen.id3
import mutagen.mp3
import mutagen.wave
import numpy as np
import numpy.typing as npt
import scipy.signal
import soundfile

from models.labels import GEMS

Signal = npt.NDArray[np.float64]
_T = TypeVar("_T")

LAYERS = ("melody", "chords", "bass", "arpeggio", "percussion")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # semitones above the tonic
TIMBRES = ("piano", "strings", "synth", "guitar", "distorted")
KICK, SNARE, HAT = 36, 38, 42  # pitches of percussion notes, as in General MIDI
GENRES = {
    "classical": 0,
    "rock": 100,
    "electronic": 200,
    "pop": 300,
}  # genre -> added to the file number by the track id
EMOTIONS = GEMS.labels
N_LISTENERS = 12

_SLOTS_A_BAR = 16
_SLOTS_A_PHRASE = 64
_FADE_S = 0.25  # at the end of a signal
_CEILING, _KNEE = 0.89, 0.6  # highest peak (lossy coding overshoots it by about 1 dB), and where bending begins
_PURPOSES = (
    "form",
    "melody",
    "chromaticism",
    "modulation",
    "dissonance",
    "drift",
    "onsets",
    "durations",
    "dynamics",
)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r} must be {rule}")


def _is_real(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_whole(value: object, low: int, high: float) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(low <= value <= high)


@dataclass(frozen=True)
class Cues:
    """Everything about a piece that a listener would be asked about.

    Raises
    ------
    ValueError
        If a cue lies outside the range that its comment gives.
    """

    mode: str = "major"  # "major" | "minor"
    tonic: int = 60  # MIDI pitch of the tonic of the melody, 36..84
    tempo_bpm: float = 110.0  # quarter notes a minute, 30..240
    articulation: float = 0.5  # 0 legato (notes overlap a little, soft attack) .. 1 staccato (a fifth of the slot)
    dissonance: float = 0.0  # 0 consonant triads .. 1 clusters of seconds, tritones, major sevenths
    regularity: float = 1.0  # 1 strictly on the grid .. 0 irregular onsets, random durations, drifting tempo
    layers: int = 2  # simultaneous rhythmic layers, 1..5: the first so many of LAYERS
    chromaticism: float = 0.0  # 0..1, share of melody notes outside the scale; phrases also modulate above 0.5
    loudness_db: float = -14.0  # RMS of the rendered signal, dBFS, -60..-6
    timbre: str = "strings"  # one of TIMBRES

    def __post_init__(self) -> None:
        _require(self.mode in SCALES, "mode", self.mode, f"one of {', '.join(SCALES)}")
        _require(_is_whole(self.tonic, 36, 84), "tonic", self.tonic, "a whole MIDI pitch from 36 to 84")
        _require(_is_real(self.tempo_bpm, 30, 240), "tempo_bpm", self.tempo_bpm, "from 30 to 240")
        for name in ("articulation", "dissonance", "regularity", "chromaticism"):
            _require(_is_real(getattr(self, name), 0, 1), name, getattr(self, name), "from 0 to 1")
        _require(_is_whole(self.layers, 1, len(LAYERS)), "layers", self.layers, f"a whole number from 1 to {len(LAYERS)}")
        _require(_is_real(self.loudness_db, -60, -6), "loudness_db", self.loudness_db, "from -60 to -6")
        _require(self.timbre in TIMBRES, "timbre", self.timbre, f"one of {', '.join(TIMBRES)}")


def twin(cues: Cues, **changes: Any) -> Cues:
    """Return `cues` with some cues changed and the others shared.

    Raises
    ------
    ValueError
        If a name in `changes` is no cue, or its value is out of range.
    """
    names = [field.name for field in fields(Cues)]
    for name in changes:
        if name not in names:
            raise ValueError(f"{name!r} is not a cue: must be one of {', '.join(names)}")
    return replace(cues, **changes)


@dataclass(frozen=True)
class Note:
    """One note of a piece.

    Raises
    ------
    ValueError
        If a field lies outside the range that its comment gives.
    """

    onset_s: float  # >= 0
    offset_s: float  # > onset_s; the release follows it
    pitch: int  # MIDI, 0..127; of percussion KICK, SNARE or HAT
    amplitude: float  # linear, > 0, before the whole is brought to its loudness
    timbre: str  # one of TIMBRES, or "percussion"
    layer: str = "melody"  # one of LAYERS, or "clash"
    attack_s: float = 0.01  # > 0, time to full amplitude; struck and plucked timbres use a fraction of it

    def __post_init__(self) -> None:
        _require(0 <= self.onset_s < math.inf, "onset_s", self.onset_s, "finite and >= 0")
        _require(self.onset_s < self.offset_s < math.inf, "offset_s", self.offset_s, f"finite and > {self.onset_s}")
        _require(_is_whole(self.pitch, 0, 127), "pitch", self.pitch, "a whole number from 0 to 127")
        _require(0 < self.amplitude < math.inf, "amplitude", self.amplitude, "finite and > 0")
        _require(0 < self.attack_s < math.inf, "attack_s", self.attack_s, "finite and > 0")
        timbres = (*TIMBRES, "percussion")
        _require(self.timbre in timbres, "timbre", self.timbre, f"one of {', '.join(timbres)}")
        layers = (*LAYERS, "clash")
        _require(self.layer in layers, "layer", self.layer, f"one of {', '.join(layers)}")
        if self.timbre == "percussion":
            _require(self.pitch in _DRUMS, "pitch", self.pitch, f"one of {', '.join(map(str, _DRUMS))} in percussion")


# ---------------------------------------------------------------------------------------------------------------------
# Composition. A rhythm is a tuple of (slot of the onset within the bar, length in slots).

_Rhythm = tuple[tuple[int, int], ...]

_OPEN_PROGRESSIONS = ((0, 5, 3, 4), (0, 3, 5, 4), (0, 3, 0, 4), (0, 2, 3, 4))  # roots of the bars of odd phrases
_CLOSED_PROGRESSION = (0, 3, 4, 0)
_MELODY_RHYTHMS: tuple[_Rhythm, ...] = (
    ((0, 4), (4, 2), (6, 2), (8, 4), (12, 4)),
    ((0, 2), (2, 2), (4, 4), (8, 2), (10, 2), (12, 4)),
    ((0, 6), (6, 2), (8, 4), (12, 2), (14, 2)),
    ((0, 4), (4, 4), (8, 2), (10, 2), (12, 2), (14, 2)),
    ((0, 4), (4, 2), (6, 4), (10, 2), (12, 4)),
)
_CADENCE_RHYTHMS: tuple[_Rhythm, ...] = (((0, 4), (4, 4), (8, 6)), ((0, 2), (2, 2), (4, 4), (8, 6)))
_CHORD_RHYTHMS: tuple[_Rhythm, ...] = (
    ((0, 4), (4, 4), (8, 4), (12, 4)),
    ((0, 8), (8, 4), (12, 4)),
    ((0, 6), (6, 6), (12, 4)),
)
_BASS_RHYTHMS: tuple[_Rhythm, ...] = (
    ((0, 6), (6, 2), (8, 8)),
    ((0, 4), (4, 4), (8, 6), (14, 2)),
    ((0, 6), (6, 6), (12, 4)),
)
_SECTIONS = (0, 0, 1, 0)  # the form of four phrases, AABA: phrases of one section share motif and contour
_STEPS = (
    (0.10, -2),
    (0.40, -1),
    (0.48, 0),
    (0.80, 1),
    (0.92, 2),
    (0.96, -3),
    (1.0, 4),
)  # (cumulative probability, degrees)
_DISSONANT_TONES = (11, 1, 6)  # semitones above a chord's root: major seventh, minor second, tritone
_CLASHES = (1, 11, 6)  # semitones below a melody note
_MODULATIONS = (2, -3, 5, 1)  # semitones
_AMPLITUDES = {"melody": 1.0, "clash": 0.8, "chords": 0.32, "bass": 0.75, "arpeggio": 0.35, "percussion": 0.8}
_DRUM_S = 0.12  # length of every percussion note


@dataclass(frozen=True)
class _Event:
    layer: str
    slot: int  # of the onset, from the beginning of the piece
    length: int  # slots
    pitch: int


def _random(purpose: str, seed: int, shape: tuple[int, ...]) -> Signal:
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PURPOSES.index(purpose),)))
    return stream.random(shape)


def _evenly(purpose: str, seed: int, n: int) -> Signal:
    """Return `n` numbers in [0, 1), of which close to a share c lies below c in any stretch (golden-ratio sequence)."""
    return np.asarray((_random(purpose, seed, (1,)) + np.arange(n) * (math.sqrt(5) - 1) / 2) % 1.0)


def _pick(options: Sequence[_T], uniform: float) -> _T:
    return options[int(uniform * len(options))]


def _pitch(cues: Cues, degree: int) -> int:
    octave, step = divmod(degree, 7)
    return int(cues.tonic) + 12 * octave + SCALES[cues.mode][step]


def _fold(pitch: int, low: int) -> int:
    """Return the pitch of the same pitch class within the octave from `low`."""
    return low + (pitch - low) % 12


def _roots(n_phrases: int, seed: int) -> list[int]:
    open_progression = _pick(_OPEN_PROGRESSIONS, _random("form", seed, (8,))[0])
    return [root for k in range(n_phrases) for root in (_CLOSED_PROGRESSION if k % 2 else open_progression)]


def _shifts(cues: Cues, n_phrases: int, seed: int) -> list[int]:
    """Return the semitones by which each phrase is transposed: none in the first phrase."""
    uniform = _random("modulation", seed, (n_phrases, 2))
    moved = uniform[:, 0] < 2 * cues.chromaticism - 1
    return [_pick(_MODULATIONS, u) if k and moved[k] else 0 for k, u in enumerate(uniform[:, 1])]


def _melody_degrees(roots: Sequence[int], n_phrases: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """Yield (slot, length, degree): a bounded random walk that meets a chord tone on every half bar."""
    form = _random("form", seed, (8,))
    n_sections = 2 * math.ceil(n_phrases / 4)
    uniform = _random("melody", seed, (n_sections, 4, _SLOTS_A_BAR))
    for phrase in range(n_phrases):
        section = 2 * (phrase // 4) + _SECTIONS[phrase % 4]
        motif = _pick(_MELODY_RHYTHMS, form[1 + section % 2])
        answer = _pick(_MELODY_RHYTHMS, form[3 + section % 2])
        rhythms = (motif, answer, motif, _pick(_CADENCE_RHYTHMS, form[5]))
        degree = _pick((0, 2, 4), uniform[section, 0, -1])
        for bar, rhythm in enumerate(rhythms):
            root = roots[4 * phrase + bar]
            for slot, length in rhythm:
                step = next(step for limit, step in _STEPS if uniform[section, bar, slot] < limit)
                if not -2 <= degree + step <= 8:
                    step = -step
                degree += step
                if slot % 8 == 0:
                    degree = min((degree, degree - 1, degree + 1), key=lambda d: ((d - root) % 7 not in (0, 2, 4), abs(d - 3)))
                yield phrase * _SLOTS_A_PHRASE + bar * _SLOTS_A_BAR + slot, length, degree


def _melody(cues: Cues, roots: Sequence[int], shifts: Sequence[int], seed: int) -> Iterator[_Event]:
    degrees = list(_melody_degrees(roots, len(shifts), seed))
    chromatic = _evenly("chromaticism", seed, len(degrees)) < cues.chromaticism
    clashing = _evenly("dissonance", seed, len(degrees)) < cues.dissonance
    for k, (slot, length, degree) in enumerate(degrees):
        pitch = _pitch(cues, degree)
        if chromatic[k]:
            pitch += 1 if (pitch + 1 - cues.tonic) % 12 not in SCALES[cues.mode] else -1
        pitch += shifts[slot // _SLOTS_A_PHRASE]
        yield _Event("melody", slot, length, pitch)
        if clashing[k]:
            yield _Event("clash", slot, length, pitch - _CLASHES[k % len(_CLASHES)])


def _chord_tones(cues: Cues, root: int, dissonant: npt.NDArray[np.bool_]) -> list[int]:
    """Return the tones of a bar's chord, closely voiced just below the melody."""
    added = [_pitch(cues, root) + tone for tone, sounds in zip(_DISSONANT_TONES, dissonant, strict=True) if sounds]
    tones = [_pitch(cues, root + third) for third in (0, 2, 4)]
    return sorted({_fold(pitch, int(cues.tonic) - 9) for pitch in tones + added})


def _accompaniment(cues: Cues, roots: Sequence[int], shifts: Sequence[int], seed: int) -> Iterator[_Event]:
    form = _random("form", seed, (8,))
    dissonant = _evenly("dissonance", seed, 3 * len(roots)).reshape(-1, 3) < cues.dissonance
    chord_rhythm, bass_rhythm = _pick(_CHORD_RHYTHMS, form[6]), _pick(_BASS_RHYTHMS, form[7])
    for bar, root in enumerate(roots):
        start = bar * _SLOTS_A_BAR
        shift = shifts[bar // 4]
        tones = [tone + shift for tone in _chord_tones(cues, root, dissonant[bar])]
        for slot, length in chord_rhythm:
            for tone in tones:
                yield _Event("chords", start + slot, length, tone)
        low_root = _fold(_pitch(cues, root), max(int(cues.tonic) - 29, 28)) + shift
        for k, (slot, length) in enumerate(bass_rhythm):
            yield _Event("bass", start + slot, length, low_root + (7 if k == len(bass_rhythm) - 2 else 0))
        rise_and_fall = [*tones, tones[0] + 12, *tones[:0:-1]]
        for slot in range(_SLOTS_A_BAR):
            yield _Event("arpeggio", start + slot, 1, rise_and_fall[slot % len(rise_and_fall)])
        for slot in range(0, _SLOTS_A_BAR, 2):
            yield _Event("percussion", start + slot, 1, HAT)
        for slot, drum in ((0, KICK), (4, SNARE), (8, KICK), (10, KICK), (12, SNARE)):
            yield _Event("percussion", start + slot, 1, drum)


def _slot_times_s(cues: Cues, n_phrases: int, seed: int) -> Signal:
    """Return the time of every slot boundary: even, or stretched within phrases that keep their length."""
    uniform = _random("drift", seed, (n_phrases, 4, 1 + _SLOTS_A_BAR)) - 0.5
    stretch = np.exp((1 - cues.regularity) * (uniform[:, :, :1] + 1.6 * uniform[:, :, 1:])).reshape(n_phrases, -1)
    stretch *= _SLOTS_A_PHRASE / stretch.sum(axis=1, keepdims=True)
    return np.concatenate([[0.0], np.cumsum(stretch)]) * 15.0 / cues.tempo_bpm


def compose(cues: Cues, *, duration_s: float, seed: int) -> list[Note]:
    """Compose a piece with known cues.

    Twins with one seed share everything but the changed cue: the k-th melody note of a faster twin has the same pitch,
    a minor twin has the same degrees at the same times, a dissonant twin adds notes and moves none.

    A note sounds for ``1.06 - 0.86 articulation`` of its slot (less regular pieces: times a random factor of
    ``1 ± 0.7 (1 - regularity)``) with an attack of ``4 + 70 (1 - articulation)`` ms.

    Parameters
    ----------
    cues
        What the piece should be like.
    duration_s
        Length, > 0; notes still sounding at that time end there.
    seed
        Any whole number >= 0.

    Returns
    -------
    list of Note
        Sorted by onset, then layer, then pitch; never empty.

    Raises
    ------
    ValueError
        If `duration_s` or `seed` is out of range.
    """
    _require(_is_real(duration_s, 0, 3600) and duration_s > 0, "duration_s", duration_s, "> 0 and at most 3600")
    _require(_is_whole(seed, 0, math.inf), "seed", seed, "a whole number >= 0")
    n_phrases = math.ceil(duration_s / (_SLOTS_A_PHRASE * 15.0 / cues.tempo_bpm)) + 1
    slot_times_s = _slot_times_s(cues, n_phrases, seed)
    n_slots = n_phrases * _SLOTS_A_PHRASE
    onset_jitter = (_random("onsets", seed, (n_slots, len(LAYERS))) - 0.5) * 0.7 * (1 - cues.regularity)  # slots
    onset_jitter[0] = 0.0
    stretch = 1 + (2 * _random("durations", seed, (n_slots, len(LAYERS))) - 1) * 0.7 * (1 - cues.regularity)
    accent = 0.9 + 0.2 * _random("dynamics", seed, (n_slots, len(LAYERS)))
    sounding_share = 1.06 - 0.86 * cues.articulation

    roots, shifts = _roots(n_phrases, seed), _shifts(cues, n_phrases, seed)
    events = [*_melody(cues, roots, shifts, seed), *_accompaniment(cues, roots, shifts, seed)]
    sounding = {"clash", *LAYERS[: cues.layers]}
    boundaries = np.arange(n_slots + 1)
    voices = [0 if e.layer == "clash" else LAYERS.index(e.layer) for e in events]
    slots = np.array([e.slot for e in events])
    ends = np.array([e.slot + e.length for e in events])
    onsets_s = np.interp(slots + onset_jitter[slots, voices], boundaries, slot_times_s)
    slot_lengths_s = np.interp(ends, boundaries, slot_times_s) - onsets_s
    notes = []
    for k, event in enumerate(events):
        if event.layer not in sounding or onsets_s[k] >= duration_s:
            continue
        is_drum = event.layer == "percussion"
        length_s = _DRUM_S if is_drum else slot_lengths_s[k] * sounding_share * stretch[event.slot, voices[k]]
        strength = {0: 1.0, 8: 0.9}.get(event.slot % _SLOTS_A_BAR, 0.82 if event.slot % 4 == 0 else 0.72)
        notes.append(
            Note(
                onset_s=float(onsets_s[k]),
                offset_s=float(min(onsets_s[k] + length_s, duration_s)),
                pitch=event.pitch,
                amplitude=float(_AMPLITUDES[event.layer] * strength * accent[event.slot, voices[k]]),
                timbre="percussion" if is_drum else cues.timbre,
                layer=event.layer,
                attack_s=0.002 if is_drum else 0.004 + 0.07 * (1 - cues.articulation),
            )
        )
    order = ("clash", *LAYERS)
    return sorted(notes, key=lambda note: (note.onset_s, order.index(note.layer), note.pitch))


# ---------------------------------------------------------------------------------------------------------------------
# Tones. A tone is (frequency in Hz, time axis in s) -> samples of about unit amplitude, before attack and release.


def _harmonics(frequency_hz: float, t: Signal, weights: Sequence[float], decay: float, darkening: float) -> Signal:
    """Sum harmonics k of amplitude ``weights[k-1] exp(-(decay + darkening k) t)``; decay and darkening in 1/s."""
    # Horner's rule: harmonic k is the k-th power of one decaying complex exponential.
    sample_rate = 1.0 / t[1] if t.size > 1 else 1.0
    n = max(1, min(len(weights), int(0.45 * sample_rate / frequency_hz)))
    z = np.exp((2j * np.pi * frequency_hz - darkening) * t)
    total = np.full_like(z, weights[n - 1])
    for weight in reversed(weights[: n - 1]):
        total *= z
        total += weight
    total *= z
    return np.asarray(total.imag * np.exp(-decay * t))


def _piano(frequency_hz: float, t: Signal) -> Signal:
    weights = [abs(math.sin(math.pi * k / 8)) / math.sin(math.pi / 8) / k**1.6 for k in range(1, 17)]
    decay = 0.7 * (frequency_hz / 262) ** 0.5
    return _harmonics(frequency_hz, t, weights, decay, 0.35 * decay)


def _strings(frequency_hz: float, t: Signal) -> Signal:
    weights = [1 / k**1.4 for k in range(1, 13)]
    vibrato = t + 0.00008 * (262 / frequency_hz) ** 0.5 * (1 - np.exp(-4 * t)) * np.sin(2 * np.pi * 5.3 * t)
    pair = [_harmonics(frequency_hz * 2 ** (cents / 1200), t, weights, 0.0, 0.0) for cents in (-3, 3)]
    return np.asarray(0.5 * (np.interp(vibrato, t, pair[0]) + pair[1]))


def _synth(frequency_hz: float, t: Signal) -> Signal:
    index = 0.35 + 0.65 * np.exp(-5 * t)
    phases = [2 * np.pi * frequency_hz * 2 ** (cents / 1200) * t for cents in (-4, 4)]
    return np.asarray(0.6 * sum(np.sin(phase + index * np.sin(phase)) for phase in phases))


def _guitar(frequency_hz: float, t: Signal) -> Signal:
    weights = [abs(math.sin(math.pi * k / 5.3)) / math.sin(math.pi / 5.3) / k**1.1 for k in range(1, 21)]
    return _harmonics(frequency_hz, t, weights, 1.2, 0.9)


def _distorted(frequency_hz: float, t: Signal) -> Signal:
    weights = [1 / k for k in range(1, 9)]
    return np.asarray(0.8 * np.tanh(2.5 * _harmonics(frequency_hz, t, weights, 0.5, 0.5)))


_TONES: Mapping[str, Callable[[float, Signal], Signal]] = {
    "piano": _piano,
    "strings": _strings,
    "synth": _synth,
    "guitar": _guitar,
    "distorted": _distorted,
}
_ATTACK_SHARES = {"piano": 0.2, "guitar": 0.2, "distorted": 0.3, "synth": 0.6, "strings": 1.0, "percussion": 1.0}


def _kick(t: Signal) -> Signal:
    return np.asarray(np.sin(2 * np.pi * (48 * t - 2.4 * (np.exp(-30 * t) - 1))) * np.exp(-18 * t))


def _snare(t: Signal) -> Signal:
    noise = np.random.default_rng(SNARE).standard_normal(t.size)
    return np.asarray((0.35 * noise + 0.4 * np.sin(2 * np.pi * 190 * t)) * np.exp(-28 * t))


def _hat(t: Signal) -> Signal:
    noise = np.random.default_rng(HAT).standard_normal(t.size)
    return np.asarray(0.13 * np.diff(noise, n=2, prepend=[0.0, 0.0]) * np.exp(-60 * t))


_DRUMS: Mapping[int, Callable[[Signal], Signal]] = {KICK: _kick, SNARE: _snare, HAT: _hat}


def _add_note(mix: Signal, note: Note, tone: Signal, sample_rate: int) -> None:
    """Add `tone` to `mix` under the note's envelope: cosine attack, cosine release after the offset."""
    start = round(note.onset_s * sample_rate)
    held = max(2, round((note.offset_s - note.onset_s) * sample_rate))
    n = min(tone.size, mix.size - start)
    if n <= 0:
        return
    envelope = np.full(tone.size, note.amplitude)
    n_attack = max(1, min(round(note.attack_s * _ATTACK_SHARES[note.timbre] * sample_rate), held // 2))
    envelope[:n_attack] *= 0.5 - 0.5 * np.cos(np.pi * (np.arange(n_attack) + 0.5) / n_attack)
    n_release = tone.size - held
    if n_release > 0:
        envelope[held:] *= 0.5 + 0.5 * np.cos(np.pi * (np.arange(n_release) + 0.5) / n_release)
    mix[start : start + n] += (envelope * tone)[:n]


def _sounding_samples(note: Note, sample_rate: int) -> int:
    release_s = 0.02 + note.attack_s
    return max(2, round((note.offset_s - note.onset_s) * sample_rate)) + round(release_s * sample_rate)


def _soften(x: Signal, gain: float) -> Signal:
    """Scale by `gain`, and bend what exceeds _KNEE so that it stays below _CEILING."""
    y = x * gain
    loud = np.flatnonzero(np.abs(y) > _KNEE)
    room = _CEILING - _KNEE
    y[loud] = np.sign(y[loud]) * (_KNEE + room * np.tanh((np.abs(y[loud]) - _KNEE) / room))
    return y


def _rms(x: Signal) -> float:
    return math.sqrt(float(np.mean(np.square(x))))


def _at_loudness(x: Signal, loudness_db: float) -> Signal:
    if not x.any():
        raise ValueError("notes must sound: all of them begin within the last samples")
    target = 10 ** (loudness_db / 20)
    gain = target / _rms(x)
    if gain * float(np.abs(x).max()) <= _CEILING:
        return x * gain
    for _ in range(40):
        y = _soften(x, gain)
        ratio = target / _rms(y)
        if abs(ratio - 1) < 1e-5:
            return y
        gain *= ratio**1.5
    raise ValueError(f"loudness_db={loudness_db} must be lower: these notes are too sparse to reach it without clipping")


def render(notes: Sequence[Note], *, duration_s: float, sample_rate: int = 44100, loudness_db: float) -> npt.NDArray[np.float32]:
    """Render notes to a mono signal of a given loudness.

    A signal whose peaks stay within 0.89 is only scaled; in a louder one what exceeds 0.6 is bent smoothly towards
    0.89, so that nothing clips.
    The last 0.25 s (a quarter of a shorter signal) fade out.

    Parameters
    ----------
    notes
        In any order; what lies after `duration_s` is not heard.
    duration_s
        Length, > 0.
    sample_rate
        Hz, 8000 to 192000.
    loudness_db
        RMS of the signal as returned, dBFS, -60 to -6.

    Returns
    -------
    numpy.ndarray
        Shape ``(round(duration_s * sample_rate),)``, float32, ``abs(x) <= 1``.

    Raises
    ------
    ValueError
        If an argument is out of range, no note sounds, or the notes are too sparse for `loudness_db`.
    """
    _require(_is_real(duration_s, 0, 3600) and duration_s > 0, "duration_s", duration_s, "> 0 and at most 3600")
    _require(_is_whole(sample_rate, 8000, 192000), "sample_rate", sample_rate, "a whole number from 8000 to 192000")
    _require(_is_real(loudness_db, -60, -6), "loudness_db", loudness_db, "from -60 to -6")
    mix = np.zeros(round(duration_s * sample_rate))
    alike: dict[tuple[str, int], list[Note]] = defaultdict(list)
    for note in notes:
        if note.onset_s < duration_s:
            alike[note.timbre, int(note.pitch)].append(note)
    _require(bool(alike) and mix.size > 1, "notes", f"<{len(notes)} notes>", f"heard within duration_s={duration_s}")
    for (timbre, pitch), group in alike.items():
        t = np.arange(max(_sounding_samples(note, sample_rate) for note in group)) / sample_rate
        tone = _DRUMS[pitch](t) if timbre == "percussion" else _TONES[timbre](440.0 * 2 ** ((pitch - 69) / 12), t)
        for note in group:
            _add_note(mix, note, tone[: _sounding_samples(note, sample_rate)], sample_rate)
    mix = _with_room(mix, sample_rate)
    n_fade = max(1, round(min(_FADE_S, duration_s / 4) * sample_rate))
    mix[-n_fade:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, n_fade + 1) / n_fade)
    return _at_loudness(mix, loudness_db).astype(np.float32)


def _with_room(dry: Signal, sample_rate: int) -> Signal:
    """Add a quiet, short room: noise that falls by 60 dB in 0.5 s, 14 dB below the direct sound in energy."""
    t = np.arange(round(0.4 * sample_rate)) / sample_rate
    response = np.random.default_rng(0).standard_normal(t.size) * np.exp(-6.9 * t / 0.5) * (t > 0.008)
    response *= 10 ** (-14 / 20) / math.sqrt(float(np.sum(response**2)))
    return np.asarray(dry + scipy.signal.oaconvolve(dry, response)[: dry.size])


# ---------------------------------------------------------------------------------------------------------------------
# The corpus.

# Columns: major, fast, staccato, dissonant, irregular, layered, loud, high, chromatic: each cue brought to -1..1 by
# `emotion_probabilities`. The first number is the logit of a piece in the middle of every cue.
_EMOTION_WEIGHTS: Mapping[str, tuple[float, tuple[float, ...]]] = {
    "amazement": (-1.7, (0.2, 0.1, 0.0, 0.0, 0.2, 0.4, 0.2, 0.4, 0.4)),
    "solemnity": (-1.4, (-0.3, -0.8, -0.6, -0.1, -0.2, 0.0, 0.0, -0.5, 0.0)),
    "tenderness": (-1.8, (0.3, -0.7, -0.7, -0.6, 0.0, -0.5, -0.6, 0.3, 0.0)),
    "nostalgia": (-1.2, (-0.4, -0.6, -0.5, -0.3, 0.1, -0.3, -0.3, 0.0, 0.0)),
    "calmness": (-1.4, (0.1, -1.1, -0.8, -0.9, -0.3, -0.4, -0.6, 0.0, 0.0)),
    "power": (-1.4, (0.0, 0.5, 0.2, 0.1, -0.2, 0.8, 1.1, -0.3, 0.0)),
    "joyful_activation": (-1.5, (0.8, 1.0, 0.8, -0.6, -0.3, 0.2, 0.2, 0.2, 0.0)),
    "tension": (0.3, (-0.4, 0.3, 0.2, 1.2, 0.8, 0.2, 0.3, 0.0, 0.4)),
    "sadness": (-1.6, (-0.9, -0.9, -0.8, 0.1, 0.0, -0.2, -0.3, -0.2, 0.0)),
}


def emotion_probabilities(cues: Cues) -> dict[str, float]:
    """Return the probability with which a synthetic listener picks each emotion of Emotify.

    ``p = 1 / (1 + exp(-(bias + weights · x)))`` with x, clipped to -1..1: ±1 for the mode (major +1),
    ``log2(tempo_bpm / 110)``, ``2 articulation - 1``, ``2 dissonance - 1``, ``1 - 2 regularity``, ``(layers - 3) / 2``,
    ``(loudness_db + 17) / 8``, ``(tonic - 60) / 12`` and ``2 chromaticism - 1``. The weights are our own choice; their
    signs follow what studies of cues agree on (joyful: major, fast, staccato, consonant; sad: minor, slow, legato;
    tense: dissonant, irregular; calm: slow, legato, consonant; powerful: loud, many layers).
    """
    x = (
        1.0 if cues.mode == "major" else -1.0,
        math.log2(cues.tempo_bpm / 110),
        2 * cues.articulation - 1,
        2 * cues.dissonance - 1,
        1 - 2 * cues.regularity,
        (cues.layers - 3) / 2,
        (cues.loudness_db + 17) / 8,
        (cues.tonic - 60) / 12,
        2 * cues.chromaticism - 1,
    )
    logits = {
        emotion: bias + sum(w * min(max(v, -1.0), 1.0) for w, v in zip(weights, x, strict=True))
        for emotion, (bias, weights) in _EMOTION_WEIGHTS.items()
    }
    return {emotion: 1 / (1 + math.exp(-logit)) for emotion, logit in logits.items()}


@dataclass(frozen=True)
class _Style:
    """What is typical of a genre: (low, high) of each cue."""

    timbres: tuple[str, ...]
    ensemble: str
    tonic: tuple[int, int]
    tempo_bpm: tuple[float, float]
    articulation: tuple[float, float]
    dissonance: tuple[float, float]
    regularity: tuple[float, float]
    layers: tuple[int, int]
    chromaticism: tuple[float, float]
    loudness_db: tuple[float, float]


_STYLES = {
    "classical": _Style(
        timbres=("strings", "piano"),
        ensemble="Ensemble",
        tonic=(55, 72),
        tempo_bpm=(52, 120),
        articulation=(0, 0.7),
        dissonance=(0, 0.4),
        regularity=(0.6, 1),
        layers=(2, 4),
        chromaticism=(0, 0.3),
        loudness_db=(-24, -18),
    ),
    "rock": _Style(
        timbres=("distorted", "guitar"),
        ensemble="Band",
        tonic=(52, 67),
        tempo_bpm=(96, 172),
        articulation=(0.1, 0.7),
        dissonance=(0, 0.5),
        regularity=(0.8, 1),
        layers=(5, 5),
        chromaticism=(0, 0.2),
        loudness_db=(-17, -13),
    ),
    "electronic": _Style(
        timbres=("synth",),
        ensemble="Circuit",
        tonic=(55, 72),
        tempo_bpm=(84, 150),
        articulation=(0.3, 1),
        dissonance=(0, 0.6),
        regularity=(0.9, 1),
        layers=(4, 5),
        chromaticism=(0, 0.3),
        loudness_db=(-17, -13),
    ),
    "pop": _Style(
        timbres=("piano", "guitar"),
        ensemble="Singers",
        tonic=(57, 70),
        tempo_bpm=(76, 132),
        articulation=(0.1, 0.8),
        dissonance=(0, 0.2),
        regularity=(0.85, 1),
        layers=(3, 5),
        chromaticism=(0, 0.1),
        loudness_db=(-18, -14),
    ),
}
_ADJECTIVES = ("Quiet", "Bright", "Northern", "Paper", "Little", "Amber", "Distant", "Second", "Open", "Salt")
_NOUNS = ("Harbour", "Morning", "Ladder", "Garden", "Signal", "Winter", "Window", "Meadow", "Engine", "Lantern")
_LANGUAGES = ("English", "Dutch", "Russian", "German", "Spanish")


@dataclass(frozen=True)
class _Track:
    genre: str
    number: int  # the stem of the file name, from 1
    artist: str
    album: str
    title: str
    cues: Cues


def _draw_track(genre: str, number: int, seed: int) -> _Track:
    style = _STYLES[genre]
    place = list(GENRES).index(genre)
    rng = np.random.default_rng([seed, place, number])

    def draw(limits: tuple[float, float]) -> float:
        return round(float(rng.uniform(*limits)), 2)

    cues = Cues(
        mode="minor" if (number + place) % 2 else "major",
        tonic=int(rng.integers(*style.tonic, endpoint=True)),
        tempo_bpm=draw(style.tempo_bpm),
        articulation=draw(style.articulation),
        dissonance=draw(style.dissonance),
        regularity=draw(style.regularity),
        layers=int(rng.integers(*style.layers, endpoint=True)),
        chromaticism=draw(style.chromaticism),
        loudness_db=draw(style.loudness_db),
        timbre=style.timbres[(number - 1) % len(style.timbres)],
    )
    letter, rounds = chr(ord("A") + (number - 1) // 2 % 26), (number - 1) // 52
    artist = f"Demo {style.ensemble} {letter}{rounds + 1 if rounds else ''}"
    title = f"{_pick(_ADJECTIVES, rng.random())} {_pick(_NOUNS, rng.random())} No. {number}"
    return _Track(genre, number, artist, f"Synthetic {genre.capitalize()}", title, cues)


def _write_tags(path: Path, track: _Track) -> None:
    if path.suffix == ".flac":
        flac = mutagen.flac.FLAC(path)
        flac["artist"], flac["album"], flac["title"] = track.artist, track.album, track.title
        flac.save()
        return
    tagged = mutagen.mp3.MP3(path) if path.suffix == ".mp3" else mutagen.wave.WAVE(path)
    tagged.add_tags()
    tagged.tags.add(mutagen.id3.TPE1(encoding=3, text=track.artist))
    tagged.tags.add(mutagen.id3.TALB(encoding=3, text=track.album))
    tagged.tags.add(mutagen.id3.TIT2(encoding=3, text=track.title))
    tagged.save()


def _write_audio(path: Path, track: _Track, duration_s: float, seed: int) -> None:
    sample_rate = 44100
    notes = compose(track.cues, duration_s=duration_s, seed=seed)
    signal = render(notes, duration_s=duration_s, sample_rate=sample_rate, loudness_db=track.cues.loudness_db)
    subtype = {".mp3": "MPEG_LAYER_III", ".wav": "PCM_16", ".flac": "PCM_16"}[path.suffix]
    soundfile.write(path, signal, sample_rate, format=path.suffix[1:].upper(), subtype=subtype)
    _write_tags(path, track)


def _write_ratings(path: Path, tracks: Sequence[_Track], seed: int) -> None:
    listeners = np.random.default_rng([seed, len(GENRES)])
    people = [
        (int(age), int(gender), _pick(_LANGUAGES, u))
        for age, gender, u in zip(
            listeners.integers(16, 70, N_LISTENERS),
            listeners.integers(0, 2, N_LISTENERS),
            listeners.random(N_LISTENERS) ** 2,
            strict=True,
        )
    ]
    columns = ("track id", "genre", *EMOTIONS, "mood", "liked", "disliked", "age", "gender", "mother tongue")
    lines = [", ".join(columns)]
    for track in tracks:
        rng = np.random.default_rng([seed, list(GENRES).index(track.genre), track.number, 1])
        probabilities = np.array([emotion_probabilities(track.cues)[emotion] for emotion in EMOTIONS])
        for age, gender, language in people:
            picked = (rng.random(len(EMOTIONS)) < probabilities).astype(int)
            liking = rng.random()
            answers = (*picked, rng.integers(1, 6), int(liking < 0.4), int(liking > 0.75), age, gender, language)
            row = (track.number + GENRES[track.genre], track.genre, *answers)
            lines.append(",".join(map(str, row)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_cues(path: Path, tracks: Sequence[_Track], suffix: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["track", "track id", "genre", *(field.name for field in fields(Cues))])
        for track in tracks:
            name = f"{track.genre}/{track.number}.{suffix}"
            writer.writerow([name, track.number + GENRES[track.genre], track.genre, *asdict(track.cues).values()])


def write_corpus(
    folder: Path, *, tracks_per_genre: int = 2, duration_s: float = 20.0, seed: int = 0, file_format: str = "mp3"
) -> list[Path]:
    """Write a small corpus in Emotify layout: composed music, tags, and ratings that follow from the cues.

    The same arguments give the same bytes; more tracks a genre leave the earlier tracks as they were. Modes alternate,
    two consecutive tracks of a genre share an artist. `emotion_probabilities` states the rule behind ``data.csv``.

    Parameters
    ----------
    folder
        Absent or empty.
    tracks_per_genre
        1 to 100, because the track ids of Emotify's genres lie 100 apart.
    duration_s
        Length of each track, at least 1.
    seed
        Any whole number >= 0.
    file_format
        "mp3", "wav" or "flac".

    Returns
    -------
    list of Path
        The audio files, in the order of their track ids.

    Raises
    ------
    ValueError
        If an argument is out of range, or `folder` is a file or holds anything.
    """
    folder = Path(folder)
    formats = ("mp3", "wav", "flac")
    _require(_is_whole(tracks_per_genre, 1, 100), "tracks_per_genre", tracks_per_genre, "a whole number from 1 to 100")
    _require(_is_real(duration_s, 1, 3600), "duration_s", duration_s, "from 1 to 3600")
    _require(_is_whole(seed, 0, math.inf), "seed", seed, "a whole number >= 0")
    _require(file_format in formats, "file_format", file_format, f"one of {', '.join(formats)}")
    is_free = not folder.exists() or (folder.is_dir() and next(folder.iterdir(), None) is None)
    _require(is_free, "folder", str(folder), "absent or an empty folder")

    tracks = [_draw_track(genre, n, seed) for genre in GENRES for n in range(1, tracks_per_genre + 1)]
    paths = []
    for track in tracks:
        path = folder / track.genre / f"{track.number}.{file_format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_audio(path, track, duration_s, seed * 1000 + track.number + GENRES[track.genre])
        paths.append(path)
    _write_ratings(folder / "data.csv", tracks, seed)
    _write_cues(folder / "cues.csv", tracks, file_format)
    return paths
