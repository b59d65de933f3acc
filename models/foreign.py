"""A user's own frozen Keras file, mapped onto one of our graphs.

`models.keras_files` opens it, `models.steps` lays its steps on ours; here the weights are taken over, labels brought into our
order, the inputs' standardisation taken in, and our first prediction set beside the file's own.

Conventions: weights leave here as float32 in our order of labels. A refusal names the file and its layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import crnn, emotion, joint, midlevel, probe, va
from models.bundle import BundleError
from models.inference import FRONT_END_OF, FRONT_ENDS
from models.keras_files import Stored
from models.labels import FILM, GEMS, GENRES, MIDLEVEL, VAD
from models.steps import Graph, Mismatch, Scale, graph_of, match, match_weights

Array = NDArray[np.float32]

TOLERANCE = 1e-4  # between our graph and a file's own prediction: absolute, and relative to the prediction
HALF_TOLERANCE = 2e-2  # the same, where the file computes in float16 or bfloat16
LABEL_SETS = {
    ("midlevel", "salience"): MIDLEVEL.labels,
    ("midlevel", "rating"): MIDLEVEL.labels,
    ("probe", "gems"): GEMS.labels,
    ("joint", "midlevel"): MIDLEVEL.labels,
    ("joint", "film"): FILM.labels,
    ("a2e", "film"): FILM.labels,
    ("a2mid2e", "midlevel"): MIDLEVEL.labels,
    ("a2mid2e", "film"): FILM.labels,
    ("emotion", "emotion"): GEMS.labels,
    ("va", "va"): va.OUTPUTS,
    ("vaseq", "va"): va.OUTPUTS,
    ("crnn", "reg_output"): VAD.labels,
    ("crnn", "class_output"): GENRES.labels,
}
SPELLINGS = {  # in the corpora and the documents that the models come from
    "melody": "melodiousness",
    "rhythm_complexity": "rhythmic_complexity",
    "rhythm_stability": "rhythmic_stability",
    "tonality": "tonal_stability",
    "atonality": "tonal_stability",  # a high value is tonally stable
    "mode": "minorness",
    "modality": "minorness",
    "minor": "minorness",
    "joy": "joyful_activation",
}


@dataclass(frozen=True)
class Reading:
    """What a file cannot say of itself."""

    labels: tuple[str, ...] | None = None  # in the file's order; None: ours
    midlevel_labels: tuple[str, ...] | None = None  # of the saliences that a probe reads, in the file's order
    mean: tuple[float, ...] | None = None  # of the inputs, where they were standardised outside of the graph
    standard_deviation: tuple[float, ...] | None = None
    floored: tuple[str, ...] = ()  # names of activations that are max(x, 0.37)


@dataclass(eq=False)
class Mapped:
    """A file's weights in our graph."""

    family: str
    source: str
    arguments: dict[str, Any]  # of our architecture
    network: Any
    remarks: list[str] = field(default_factory=list)
    inputs: Array | None = None  # that the comparison used
    difference: float | None = None  # largest, to the file's own prediction; None: the file cannot predict
    genres: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """One form of our graph that a file may have."""

    model: Any  # whose graph is compared
    network: Any  # that is filled
    arguments: dict[str, Any]
    under: Any = None  # the mid-level network below a probe, filled as well


def map_file(stored: Stored, family: str, reading: Reading) -> tuple[Mapped, Mapped | None]:
    """Fill our graph of a family with a file's weights, and compare its first prediction with the file's own.

    Returns
    -------
    Mapped, Mapped or None
        The family's network, and for a probe that is stored with its mid-level network that one, too.

    Raises
    ------
    BundleError
        If the file is not that family's graph, naming the layer, or predicts something else.
    """
    path = stored.path
    scale, remarks = _scale(stored, family, reading)
    deepest: Mismatch | None = None
    for candidate in _candidates(family, stored, scale):
        graph = graph_of(candidate.model, path)
        try:
            laid = (match if stored.model is not None else match_weights)(graph, stored.graph, path, family)
        except Mismatch as error:
            if deepest is None or error.depth > deepest.depth:
                deepest = error
            continue
        remarks += _remarks(stored)
        genres = _fill(candidate, graph, stored, laid, family, reading, remarks)
        mapped = Mapped(family, path.name, candidate.arguments, candidate.network, remarks, genres=genres)
        _compare(mapped, candidate, graph, stored, laid, reading, scale)
        if candidate.under is None:
            return mapped, None
        return mapped, Mapped("midlevel", path.name, {"heads": ["salience"]}, candidate.under, [f"taken from {path.name}"])
    raise BundleError(str(deepest))


def _candidates(family: str, stored: Stored, scale: Scale | None) -> Iterator[Candidate]:
    """Every form of our graph, the usual one first."""
    if family == "midlevel":
        for heads in (("salience",), ("salience", "rating"), ("rating",)):
            network = midlevel.build(midlevel.MidlevelArchitecture(heads=heads))
            yield Candidate(network, network, {"heads": list(heads)})
    elif family == "probe":
        network = probe.build()
        yield Candidate(network, network, {})
        under, network = midlevel.build(midlevel.MidlevelArchitecture(heads=("salience",))), probe.build()
        yield Candidate(probe.on_midlevel(under, network), network, {}, under)
    elif family in ("joint", "a2mid2e", "a2e"):
        network = joint.build_a2e() if family == "a2e" else joint.build_joint()
        yield Candidate(network, network, {})
    elif family == "emotion":
        one = (
            emotion.EmotionArchitecture()
            if scale is None
            else emotion.EmotionArchitecture(float(scale[0][0]), float(scale[1][0]))
        )
        network = emotion.build(one)
        yield Candidate(network, network, {"mean": one.mean, "standard_deviation": one.standard_deviation})
    elif family == "crnn":
        last = [step for step in stored.graph.steps if step.weights][-2:]
        counts = {len(step.weights[-1]) for step in last} - {3} or {3}
        for count in sorted(count for count in {*counts, 3} if count >= 2):
            network = crnn.build(crnn.CrnnArchitecture(genres=count, recurrent_dropout=0.0))
            yield Candidate(network, network, {"genres": count, "recurrent_dropout": 0.0})
    elif family == "va":
        mean, deviation = _spread(scale, va.STATISTICS)
        network = va.build_dense(va.DenseArchitecture(mean, deviation))
        yield Candidate(network, network, {"mean": list(mean), "standard_deviation": list(deviation)})
    else:
        mean, deviation = _spread(scale, 4)
        network = va.build_sequence(va.SequenceArchitecture(mean, deviation))
        yield Candidate(network, network, {"mean": list(mean), "standard_deviation": list(deviation)})


def _spread(scale: Scale | None, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """As many means and standard deviations as the input has columns, from as many or from one for all."""
    mean, deviation = scale if scale is not None else (np.zeros(1), np.ones(1))
    return tuple(np.broadcast_to(mean, (size,)).tolist()), tuple(np.broadcast_to(deviation, (size,)).tolist())


def _scale(stored: Stored, family: str, reading: Reading) -> tuple[Scale | None, list[str]]:
    """Mean and standard deviation of a network's inputs: by the file, or as stated beside it."""
    own = stored.graph.scale
    if family not in ("emotion", "va", "vaseq"):
        if own is not None:
            raise BundleError(f"{stored.path}: it standardises its input; {family} reads the front end's values as they are")
        if reading.mean is not None:
            raise BundleError(f"{stored.path}: {family} takes no mean and standard deviation of its inputs")
        return None, []
    if own is not None and reading.mean is not None:
        raise BundleError(f"{stored.path}: it standardises its input itself; leave its scale out")
    size = {"emotion": 1, "va": va.STATISTICS, "vaseq": 4}[family]
    if own is None and reading.mean is None:
        raise BundleError(
            f"{stored.path}: it does not say how its input was standardised; state mean and standard deviation ({size} of each, "
            f"of the training part) with --scale {family}=FILE.json, or --scale {family}=none where the raw values went in"
        )
    mean, deviation = own if own is not None else (np.array(reading.mean), np.array(reading.standard_deviation))
    for what, values in (("mean", mean), ("standard_deviation", deviation)):
        if values.size not in (1, size) or not np.isfinite(values).all():
            raise BundleError(f"{stored.path}: {what} of the inputs has {values.size} numbers, {family} needs {size} finite ones")
    if not (deviation > 0).all():
        raise BundleError(f"{stored.path}: a standard deviation of the inputs is not > 0")
    return (mean, deviation), ["input standardised " + ("in the file's graph" if own is not None else "as stated by --scale")]


def _remarks(stored: Stored) -> list[str]:
    found = []
    halves = [policy for policy in stored.policies if policy != "float32"]
    if halves:
        found.append(f"policy {', '.join(halves)}: weights are taken as float32, where the file computes in half precision")
    if stored.graph.ignored:
        found.append(f"without effect on a prediction, left out: {', '.join(stored.graph.ignored)}")
    if stored.model is not None and not any("drop" in name for name in stored.graph.ignored):
        found.append("the file has no dropout; nothing of a prediction depends on it")
    if stored.model is None:
        found.append("weights only: layer types and activations could not be checked, nor a prediction compared")
    return found


def _fill(
    candidate: Candidate,
    graph: Graph,
    stored: Stored,
    laid: Mapping[int, int],
    family: str,
    reading: Reading,
    remarks: list[str],
) -> tuple[str, ...] | None:
    """Copy weights layer by layer, heads in our order of labels; the genres, where the family has them."""
    genres: tuple[str, ...] | None = None
    layers = {layer.name: layer for model in (candidate.network, candidate.under) if model is not None for layer in model.layers}
    for a, b in laid.items():
        weights = [np.array(weight) for weight in stored.graph.steps[b].weights]
        if not weights:
            continue
        name = graph.steps[a].name
        known = LABEL_SETS.get((family, name)) or (
            MIDLEVEL.labels if candidate.under is not None and name == "salience" else None
        )
        if name == "class_output":
            genres = reading.labels or GENRES.labels
            if len(genres) != weights[-1].size:
                raise BundleError(
                    f"{stored.path}: layer {stored.graph.steps[b].name!r} has {weights[-1].size} genres; "
                    f"name them in its order with --labels crnn=a,b,…"
                )
        elif known is not None:
            given = reading.midlevel_labels if known == MIDLEVEL.labels and family == "probe" else reading.labels
            order = None if given is None or set(given) != set(known) else [given.index(label) for label in known]
            if order is None:
                remarks.append(f"labels of {name}: not in the file, taken to be {', '.join(known)}")
            else:
                weights = [weight[..., order] for weight in weights]
        if name in ("gems", "film") and family in ("probe", "joint", "a2mid2e"):  # their inputs are labels, too
            inputs = reading.midlevel_labels if family == "probe" else reading.labels
            if inputs is not None and set(inputs) == set(MIDLEVEL.labels):
                weights[0] = weights[0][[inputs.index(label) for label in MIDLEVEL.labels]]
        layers[name].set_weights(weights)
    return genres


def check_labels(labels: Sequence[str], family: str, renames: Mapping[str, str]) -> tuple[str, ...]:
    """Labels of a file in our spelling, in the file's order.

    Raises
    ------
    BundleError
        If they are not the labels of one of the family's outputs.
    """
    spelled = []
    for label in labels:
        plain = "_".join(label.strip().lower().replace("-", " ").split())
        spelled.append(renames.get(label.strip(), renames.get(plain, SPELLINGS.get(plain, plain))))
    sets = list(dict.fromkeys(known for (name, _), known in LABEL_SETS.items() if name == family and known != GENRES.labels))
    if family == "probe":
        sets.append(MIDLEVEL.labels)
    if any(sorted(spelled) == sorted(known) for known in sets):
        return tuple(spelled)
    if family == "crnn" and len(set(spelled)) == len(spelled) >= 2:
        return tuple(spelled)
    nearest = max(sets, key=lambda known: len(set(known) & set(spelled)))
    unknown = ", ".join(label for label in spelled if label not in nearest) or "one twice"
    missing = ", ".join(label for label in nearest if label not in spelled) or "nothing"
    raise BundleError(
        f"--labels {family}: {unknown} is unknown, {missing} is missing; say --rename theirs=ours for another spelling"
    )


def _compare(
    mapped: Mapped,
    candidate: Candidate,
    graph: Graph,
    stored: Stored,
    laid: Mapping[int, int],
    reading: Reading,
    scale: Scale | None,
) -> None:
    """Set our first prediction beside the file's own."""
    reads = "midlevel" if candidate.under is not None else mapped.family
    inputs = example_inputs(reads, scale)
    mapped.inputs = inputs if candidate.under is None else None
    if stored.model is None:
        return
    raw = inputs
    if scale is not None and stored.graph.scale is None:  # standardised outside of the file's graph
        raw = ((inputs - scale[0]) / scale[1]).astype(np.float32)
        if mapped.family == "vaseq":
            raw = np.where((inputs != 0).any(axis=2, keepdims=True), raw, 0).astype(np.float32)
    theirs = stored.model(raw, training=False)  # what predict computes, without tracing a graph for one batch
    if isinstance(theirs, dict):  # Keras sorts a dict of outputs as it flattens it
        values = [theirs[name] for name in sorted(theirs)]
    else:
        values = list(theirs) if isinstance(theirs, list | tuple) else [theirs]
    ours = candidate.model(inputs, training=False)
    half = any("16" in policy for policy in stored.policies)
    allowed = HALF_TOLERANCE if half else TOLERANCE
    worst = 0.0
    heads = dict(zip(sorted(ours), graph.outputs, strict=True))
    for head, step in heads.items():
        if laid[step] not in stored.graph.outputs:
            continue
        expected = np.asarray(values[stored.graph.outputs.index(laid[step])], np.float64)
        found = np.asarray(ours[head], np.float64)
        known = LABEL_SETS.get((mapped.family, head))
        if known is not None and reading.labels is not None and set(reading.labels) == set(known) and head != "class_output":
            expected = expected[:, [reading.labels.index(label) for label in known]]
        difference = np.abs(found - expected)
        worst = max(worst, float(difference.max()))
        if not (difference <= allowed * (1 + np.abs(expected))).all():
            raise BundleError(
                f"{stored.path}: our graph predicts {head} with a difference of {difference.max():.2g} to the file's own "
                f"prediction, more than {allowed:g}: layer {stored.graph.steps[laid[step]].name!r} or one before it differs"
            )
    mapped.difference = worst


def example_inputs(family: str, scale: Scale | None = None, front_end: str | None = None) -> Array:
    """Inputs of a family's network as its front end makes them, from tones and noise; the same every time.

    `front_end` is the class name of a spec, where it is not the one that a user's file of the family is read with.
    """
    rng = np.random.default_rng(0)
    if family == "probe":
        return rng.uniform(0, 1, (4, len(MIDLEVEL.labels))).astype(np.float32)
    if family == "va":
        mean, deviation = scale if scale is not None else (np.zeros(1), np.ones(1))
        return (mean + deviation * rng.standard_normal((4, va.STATISTICS))).astype(np.float32)
    if family == "vaseq":
        notes = np.zeros((2, va.NOTES, 4), np.float32)
        for track, count in enumerate((20, 60)):
            columns = (
                rng.integers(40, 80, count),
                rng.uniform(0.05, 0.5, count),
                rng.uniform(0.1, 1, count),
                rng.uniform(0.3, 1, count),
            )
            notes[track, :count] = np.stack(columns, axis=1)
        return notes
    spec_type, windows = FRONT_ENDS[front_end or FRONT_END_OF[family]]
    spec = spec_type()
    t = np.arange(spec.window_length) / spec.sample_rate
    tones = sum(
        np.sin(2 * np.pi * pitch * t) * np.exp(-((t * rate) % 1) * 4) for pitch, rate in ((220, 2), (277.2, 3), (659.3, 0.7))
    )
    signal = (0.2 * tones + 0.02 * rng.standard_normal(len(t))).astype(np.float32)
    return np.stack(list(windows(signal, spec)))[..., None].astype(np.float32)


@contextlib.contextmanager
def float32() -> Iterator[None]:
    """Build graphs in float32 whatever policy a user's file or program has set."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# --- the other way ---


def plain(network: Any, family: str, arguments: Mapping[str, Any]) -> Any:
    """Rebuild a network of ours from Keras's own layers alone, so that Keras opens its file without this project.

    Only the note networks need it: `floored` becomes Keras's `maximum`, the masked standardisation a Masking before a Rescaling,
    which changes no prediction.
    """
    if family not in ("va", "vaseq"):
        return network
    import keras
    from keras import layers

    mean = np.asarray(arguments.get("mean", [0.0]))
    deviation = np.asarray(arguments.get("standard_deviation", [1.0]))
    rescale = layers.Rescaling((1 / deviation).tolist(), (-mean / deviation).tolist(), name="standardize")
    inputs = keras.Input(network.input_shape[1:], name=network.inputs[0].name)
    if family == "va":
        x = rescale(inputs)
        for units in (32, 16):
            x = layers.Dense(units, activation="relu")(x)
        x = keras.ops.maximum(layers.Dense(len(va.OUTPUTS), name="va")(x), va.FLOOR)
    else:
        x = rescale(layers.Masking(0.0)(inputs))
        x = layers.SimpleRNN(64, return_sequences=True, name="first_rnn")(x)
        x = layers.SimpleRNN(va.SEQUENCE_FEATURES, name="second_rnn")(x)
        x = layers.Dense(len(va.OUTPUTS), name="va")(x)
    model = keras.Model(inputs, {"va": x}, name=network.name)
    model.set_weights(network.get_weights())
    return model
