"""Labels and splits that a user brings, and all that training refuses, with what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from annotate import training
from annotate.training_labels import (
    LabelFile,
    check_labels,
    find_split,
    match_ids,
    parts_of,
    read_ids,
    read_label_file,
)
from models.labels import FILM, GEMS, MIDLEVEL


def written(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_labels_are_read_by_full_and_by_plain_names(tmp_path: Path) -> None:
    path = written(tmp_path, "file, film_tension,artist\na, 3.5,X\nb,9,\n")
    found = read_label_file(LabelFile(path, "file"))
    assert found["film_tension"].to_dict() == {"a": 3.5, "b": 9.0}
    assert found["artist"].dropna().to_dict() == {"a": "X"}
    path = written(tmp_path, "id,valence,arousal\na,3.5,1\n")
    found = read_label_file(LabelFile(path, "id", "va"))
    assert found.loc["a"].to_dict() == {"va_valence_mean": 3.5, "va_arousal_mean": 1.0}
    with pytest.raises(ValueError, match="no column holds a label"):
        read_label_file(LabelFile(path, "id"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,film_tension\na,3\na,4\n", "must be there once: a"),
        ("file,film_tension\n,3\n", "is empty in line 2"),
        ("name,film_tension\na,3\n", "no column 'file'; it has name, film_tension"),
        ("file,film_tension\na,3\nb,\n", r"must be a finite number in every row: b \(''\)"),
        ("file,film_tension\na,nan\n", r"must be a finite number in every row: a \('nan'\)"),
        ("file,film_tension\na,inf\n", r"must be a finite number in every row: a \('inf'\)"),
        ("file,film_tension\na,9.5\n", r"film_tension must be in 1-9: a \('9.5'\)"),
        ("file,gems_power\na,-0.1\n", r"gems_power must be in 0-1: a"),
        ("", "No columns to parse"),
    ],
)
def test_label_files_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_label_file(LabelFile(written(tmp_path, text), "file"))


def test_ids_are_keys_paths_or_file_names() -> None:
    keys, tracks = ["1", "101"], ["classical/1.mp3", "rock/1.mp3"]
    assert match_ids(["101", "7"], keys, tracks, "x").to_dict() == {"101": 1, "7": -1}
    assert match_ids(["rock/1.mp3"], keys, tracks, "x").tolist() == [1]
    assert match_ids(["rock/1"], keys, tracks, "x").tolist() == [1]
    with pytest.raises(ValueError, match=r"none of its 1 ids \(q\) is that of a track \(1, 101\)"):
        match_ids(["q"], keys, tracks, "x")
    with pytest.raises(ValueError, match="ids that belong to several tracks: a"):
        match_ids(["a"], ["p", "q"], ["x/a.wav", "y/a.wav"], "labels.csv")


def test_published_splits(tmp_path: Path) -> None:
    table = pd.DataFrame({"track_key": list("abcde"), "track": [f"{k}.mp3" for k in "abcde"]})
    for part, ids in (("train", "ab"), ("validation", "c"), ("test", "d")):
        (tmp_path / f"split_{part}.txt").write_text("\n".join(ids))
    assert parts_of(find_split(tmp_path), table).tolist() == ["train", "train", "validation", "test", "none"]
    assert parts_of(find_split(tmp_path / "split_test.txt"), table).tolist() == ["train", "train", "train", "test", "train"]
    (tmp_path / "split_validation.txt").write_text("a\nc")
    with pytest.raises(ValueError, match="share ids: a; the parts of a split must be disjoint"):
        parts_of(find_split(tmp_path), table)
    with pytest.raises(ValueError, match="there twice: x"):
        read_ids(written(tmp_path, "x\nx\n"))
    with pytest.raises(ValueError, match="holds no id"):
        read_ids(written(tmp_path, "\n"))
    with pytest.raises(FileNotFoundError, match=r"no split_test\.txt"):
        find_split(tmp_path.parent)


def rated(**columns: Any) -> training.Rated:
    count = len(next(iter(columns.values())))
    base = {
        "corpus": "emotify",
        "track_key": [str(k) for k in range(count)],
        "track": [f"rock/{k}.mp3" for k in range(count)],
        "genre": "rock",
        "split_group": [f"emotify:{k // 2}" for k in range(count)],
        "sha256": [f"{k:02d}" for k in range(count)],
    }
    return training.Rated(pd.DataFrame(base | columns), Path("nowhere"), None)


def shares(count: int = 12) -> dict[str, Any]:
    values = np.random.default_rng(0).uniform(0.1, 0.9, (count, 9))
    return {f"gems_{label}": values[:, number] for number, label in enumerate(GEMS.labels)}


def test_what_cannot_be_learned_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no track of emotify has what joint learns \(film_valence"):
        training.check_targets(rated(**shares()), ["joint"], tmp_path)
    constant = shares() | {"gems_power": np.full(12, 0.5)}
    with pytest.raises(ValueError, match=r"gems_power is 0\.5 for all 12 tracks: emotion cannot learn a constant label"):
        training.check_targets(rated(**constant), ["emotion"], tmp_path)
    outside = shares()
    outside["gems_power"][3] = 1.7
    with pytest.raises(ValueError, match=r"gems_power must be in 0-1: 3 \(such as 1\.7\)"):
        training.check_targets(rated(**outside), ["emotion"], tmp_path)
    with pytest.raises(ValueError, match="6 artists or albums cannot be split into 8 folds"):
        training.check_targets(rated(**shares()), ["emotion"], tmp_path, training.Plan(folds=8))
    with pytest.raises(ValueError, match="name with --frozen a bundle"):
        training.check_targets(rated(**shares()), ["probe"], tmp_path, training.Plan(folds=2))
    with pytest.raises(ValueError, match=r"gems_power is 0\.5 for all 12 tracks: best cannot learn"):
        training.check_targets(rated(**constant), ["best"], tmp_path)
    training.check_targets(rated(**shares()), ["best", "descriptors"], tmp_path, training.Plan(folds=2))
    norms = {f"vad_{label}": np.linspace(2, 8, 12) for label in ("valence", "arousal", "dominance")}
    with pytest.raises(ValueError, match="all tracks are rock: one class only"):
        training.check_targets(rated(**norms), ["crnn"], tmp_path)
    check_labels(rated(**shares()).table, ["gems_power"], "emotion", range(12))


def test_tracks_without_all_ratings_are_named_not_dropped_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    partial = shares()
    partial["gems_sadness"][5] = np.nan
    training.log.propagate = True
    with caplog.at_level("WARNING", logger="annotate"):
        training.check_targets(rated(**partial), ["emotion"], tmp_path, training.Plan(folds=2))
    assert "emotion: 1 tracks lack some of its ratings and are left out: 5" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_parts_are_disjoint_in_groups(share: float) -> None:
    from dataclasses import replace

    from models.networks import EMOTION_RECIPE

    held = rated(**shares(24))
    plan = training.Plan(recipes={"emotion": replace(EMOTION_RECIPE, validation_share=share)}, folds=3, folds_run=3)
    parts = training.parts_to_train(held, np.arange(24), "emotion", plan)
    assert [part.name for part in parts] == ["fold0", "final", "fold1", "fold2"]
    groups = held.table["split_group"].to_numpy()
    for part in parts:
        sides = [set(groups[rows]) for rows in (part.learn, part.validation, part.test)]
        assert len(sides[0] | sides[1] | sides[2]) == sum(len(side) for side in sides)
        assert bool(len(part.validation)) == bool(share)
        assert sorted([*part.train, *part.test]) == list(range(24))


def test_files_with_the_same_bytes_are_one_group() -> None:
    table = pd.DataFrame({"sha256": ["a", "b", "a", "c", "b"], "split_group": ["p", "q", "r", "s", "r"]})
    assert len(set(training._joined_groups(table))) == 2
    assert training._joined_groups(table)[3] == "s"


def test_recipes_that_were_tried_are_counted_once(tmp_path: Path) -> None:
    from dataclasses import replace

    from models.networks import VA_RECIPE

    plan = training.Plan()
    assert training.note_tried(tmp_path, "va", VA_RECIPE, plan) == 1
    assert training.note_tried(tmp_path, "va", VA_RECIPE, plan) == 1
    assert training.note_tried(tmp_path, "va", replace(VA_RECIPE, epochs=3), plan) == 2
    assert training.note_tried(tmp_path, "vaseq", VA_RECIPE, plan) == 1


def test_a_stage_of_another_recipe_is_refused(tmp_path: Path) -> None:
    held = rated(**shares())
    targets = training.values_of(held, "gems")
    training.finish_stage(tmp_path, held, np.arange(12), targets, {"epochs": 3})
    assert training.stage_done(tmp_path, held, np.arange(12), targets, {"epochs": 3})
    with pytest.raises(ValueError, match="another recipe \\(epochs 3 there, 4 now\\)"):
        training.stage_done(tmp_path, held, np.arange(12), targets, {"epochs": 4})
    with pytest.raises(ValueError, match="other tracks or ratings"):
        training.stage_done(tmp_path, held, np.arange(11), targets, {"epochs": 3})


def test_a_second_target_counts_for_the_rows_of_a_family() -> None:
    film = {f"film_{label}": np.linspace(2, 8, 12) for label in FILM.labels}
    mid = {f"midlevel_{label}": np.linspace(2, 8, 12) for label in MIDLEVEL.labels}
    mid["midlevel_minorness"] = mid["midlevel_minorness"].copy()
    mid["midlevel_minorness"][:3] = np.nan
    held = rated(**film, **mid)
    assert training.rated_rows(held, "a2e").tolist() == list(range(12))
    assert training.rated_rows(held, "joint").tolist() == list(range(3, 12))
