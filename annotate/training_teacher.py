"""Teachers: predictions of a model for tracks that no person rated, to learn from beside the people's ratings.

A held-out part never meets a teacher that saw it: the descriptor model is fitted anew on what the part's model learns from, and a
bundle is refused where it was trained on a track of a held-out artist or album.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annotate import training, training_data
from annotate.console import log
from annotate.schema import known_tracks, was_in_training
from annotate.training import Part, Plan, Rated, columns_of
from annotate.training_labels import some
from models import bundle as bundles
from models.tagger import EMBEDDING
from models.training import Course

Array = NDArray[np.float32]

# columns by which a family of a bundle tells a target
TAUGHT = {
    "midlevel": {"midlevel": "midlevel"},
    "joint": {"film": "film", "midlevel": "joint"},
    "emotion": {"gems": "emotion"},
    "crnn": {"vad": "crnn"},
    "va": {"va": "va"},
    "vaseq": {"va": "vaseq"},
    "descriptors": {"midlevel": "desc_midlevel", "film": "desc_film", "gems": "desc_gems", "va": "desc_va"},
    "best": {"midlevel": "best_midlevel", "film": "best_film", "gems": "best_gems", "va": "best_va"},
}


def teach(rated: Rated, target: str, part: Part, teacher: str, work: Path, plan: Plan) -> Array:
    """Predictions of a target for every track, shape (track, label), NaN for a label that the teacher does not tell.

    Parameters
    ----------
    teacher : str
        ``descriptors``: the descriptor model, fitted on `part.learn`; or ``BUNDLE:MODEL``.

    Raises
    ------
    ValueError
        For a model that does not tell the target, or that saw an artist or album of the held-out part.
    """
    if teacher == "descriptors":
        return _descriptor_teacher(rated, target, part, plan)
    name, _, model = teacher.rpartition(":")
    if not name or model not in TAUGHT:
        raise ValueError(
            f"--teacher {teacher!r}: say descriptors, none, or BUNDLE:MODEL with a model of {', '.join(TAUGHT)}, such as "
            "default:descriptors"
        )
    bundle = bundles.load(name)
    if model not in bundle.families:
        raise ValueError(f"--teacher {teacher}: bundle {bundle.name!r} has no {model}")
    if target not in TAUGHT[model]:
        raise ValueError(f"--teacher {teacher}: {model} tells {', '.join(TAUGHT[model])}, not {target}")
    seen = groups_seen(rated, bundle, model)
    held = set(rated.table["split_group"].iloc[part.test]) & seen
    if held:
        said = f"{part.name}: the teacher {teacher} was trained on {len(held)} of its artists or albums ({some(sorted(held), 3)})"
        if model not in training.RATING_PREFIX:
            raise ValueError(
                f"{said}, its score would flatter: use --teacher descriptors, which is fitted without them, a bundle that did "
                "not see them, or --folds-run 0"
            )
        log.warning("%s: a descriptor model that is fitted without them takes its place", said)
        return _descriptor_teacher(rated, target, part, plan)
    return _bundle_teacher(rated, target, bundle, model, work)


def groups_seen(rated: Rated, bundle: bundles.Bundle, family: str) -> set[str]:
    """Artists and albums of these tracks of which a family of a bundle was trained on at least one track."""
    known = {name: tracks for name, tracks in known_tracks(bundle).items() if name == family}
    rows = (
        {"corpus": row.corpus, "track_key": row.track_key, "artist": row.artist, "title": row.title, "audio_sha256": row.sha256}
        for row in rated.table.itertuples()
    )
    seen = [bool(was_in_training(row, known)) for row in rows]
    return set(rated.table.loc[seen, "split_group"])


def _descriptor_teacher(rated: Rated, target: str, part: Part, plan: Plan) -> Array:
    columns, values = training.descriptor_targets(rated, target)
    rows = part.learn[np.isfinite(values[part.learn]).all(axis=1)]
    if not len(rows):
        raise ValueError(f"the descriptor model cannot teach {target}: no track of the training part is rated for it")
    family = "best" if training_data.has_tagger(rated.arrays, rated.table["sha256"]) else "descriptors"
    model = training.fit_ratings(rated, family, target, rows, plan.recipe(family))
    return _in_order(target, columns, model.predict(training.rating_inputs(rated, family)))


HINTS = 64  # principal components of the tagging network's embedding that a network learns beside the ratings
COURSE_PENALTY = 300.0  # of the ridge regression that follows a teacher's ratings from window to window
WIDEST = 4.0  # SDs


def course_of(rated: Rated, rows: NDArray[np.intp], learn: NDArray[np.intp], taught: Mapping[str, Array]) -> Course:
    """How the tagging network hears each of some tracks go on: hints, and a teacher's ratings from window to window.

    Parameters
    ----------
    rows : numpy.ndarray
        The tracks.
    learn : numpy.ndarray
        Tracks that the scales and the regression are fitted on: none of a held-out group.
    taught : Mapping
        By head: the teacher's ratings of every track, shape (track, label).
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge

    spec = training_data.TAGGER
    tracks = rated.stack("embedding")[:, :EMBEDDING]
    center, scale = tracks[learn].mean(axis=0), tracks[learn].std(axis=0)
    scale = np.where(scale < 1e-2 * np.median(scale), np.inf, scale)

    def standard(values: NDArray[Any]) -> NDArray[Any]:
        limited: NDArray[Any] = np.clip((values.astype(np.float32) - center) / scale, -WIDEST, WIDEST)
        return limited

    windows = [standard(np.asarray(array)) for array in rated.open("embedding_windows", rows)]
    components = PCA(min(HINTS, len(learn) - 1)).fit(standard(tracks[rows]))
    spread = components.transform(standard(tracks[rows])).std(axis=0)
    spread = np.maximum(spread, 0.15 * spread[0])  # the last components are mostly noise: not to be learned as eagerly
    ratings: dict[str, list[Array]] = {}
    for head, values in taught.items():
        known = learn[np.isfinite(values[learn]).all(axis=1)]
        ridge = Ridge(alpha=COURSE_PENALTY).fit(standard(tracks[known]), values[known])
        whole = ridge.predict(standard(tracks[rows]))
        ratings[head] = [(ridge.predict(one) - whole[k]).astype(np.float32) for k, one in enumerate(windows)]
    hints = [(components.transform(one) / spread).astype(np.float32) for one in windows]
    return Course(spec.window_length / spec.sample_rate, hints, ratings)


def _in_order(target: str, columns: list[str], predicted: Array) -> Array:
    table = pd.DataFrame(predicted, columns=columns)
    ordered: Array = table.reindex(columns=columns_of(target)).to_numpy(np.float32)
    return ordered


def _bundle_teacher(rated: Rated, target: str, bundle: bundles.Bundle, model: str, work: Path) -> Array:
    columns = bundle_predictions(rated, bundle, model, work)
    prefix = TAUGHT[model][target]
    wanted = [f"{prefix}_{column.removeprefix(f'{target}_')}" for column in columns_of(target)]
    ordered: Array = columns.reindex(columns=wanted).to_numpy(np.float32)
    return ordered


def bundle_predictions(rated: Rated, bundle: bundles.Bundle, family: str, work: Path) -> pd.DataFrame:
    """Predictions of one family of a bundle for every track, a column each, kept in the working folder.

    A network also gives its embedding, columns ``e000`` and so on: its penultimate layer, averaged over windows.
    """
    kept = work / "predicted" / f"{bundle.digest[:16]}-{family}.parquet"
    at_once = len(rated.table) if family in (*training.RATING_PREFIX, "probe") else training_data.KEPT_AT_A_TIME
    found = training_data.kept_rows(
        kept,
        rated.table["sha256"],
        lambda: _predictor(rated, bundle, family, work),
        what=f"{family} of {bundle.name}",
        at_a_time=at_once,
    )
    return found.reset_index(drop=True)


def _predictor(rated: Rated, bundle: bundles.Bundle, family: str, work: Path) -> training_data.Predict:
    """Tell the columns of some tracks by one family of a bundle."""
    from models import networks

    held = bundle.families[family]
    if family in training.RATING_PREFIX:

        def rate(rows: NDArray[np.intp]) -> dict[str, Any]:
            inputs = training.rating_inputs(rated, family)[rows]
            columns: dict[str, Any] = {}
            for output in held.outputs:
                values = bundles.run_engine(bundle.file(held.details["engines"][output.head]), inputs)["ratings"]
                columns |= dict(zip(output.columns, values.T, strict=True))
            return columns

        return rate
    if family == "probe":

        def probe(rows: NDArray[np.intp]) -> dict[str, Any]:
            salience = training.salience_of(rated, work, rows, str(bundle.folder))
            predicted = bundles.load_network(bundle, family).predict(salience, verbose=0)["gems"]
            return dict(zip(columns_of("gems"), predicted.T, strict=True)) | _embedding(salience)

        return probe
    network = networks.with_embedding(bundles.load_network(bundle, family))

    def predict(rows: NDArray[np.intp]) -> dict[str, Any]:
        columns = training.predict_network(rated, family, network, rows)
        return columns | _embedding(columns.pop("embedding"))

    return predict


def _embedding(values: Array) -> dict[str, Any]:
    return {f"e{number:03d}": column for number, column in enumerate(values.T)}
