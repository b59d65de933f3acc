"""Recipes: their flags, the founding documents' own, and what early stopping, plateaus and SMOTE do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from click.testing import Result

from models import networks
from models.networks import DOCUMENT_RECIPES, RECIPES, EmotionRecipe, balanced, emotion_cut, multi_hot
from models.training import Examples, Head, Recipe, _is_over, fit, learning_rate_of


def losses(*values: float) -> list[dict[str, float]]:
    return [{"loss": 0.0, "val_loss": value} for value in values]


def test_the_learning_rate_follows_from_the_history() -> None:
    recipe = Recipe(learning_rate=1.0, schedule="constant", validation_share=0.2, plateau_patience=2, plateau_factor=0.5)
    assert learning_rate_of([], recipe) == 1.0
    assert learning_rate_of(losses(3, 2, 2.5), recipe) == 1.0
    assert learning_rate_of(losses(3, 2, 2.5, 2.1), recipe) == 0.5
    assert learning_rate_of(losses(3, 2, 2.5, 2.1, 2.1, 2.1), recipe) == 0.25
    assert learning_rate_of(losses(3, 2, 2.5, 1.9, 2.1), recipe) == 1.0
    falling = replace(recipe, schedule="exponential", decay=0.9)
    assert learning_rate_of(losses(3, 2, 1), falling) == pytest.approx(0.9**3)


def test_training_stops_when_nothing_better_comes() -> None:
    assert not _is_over(losses(3, 2, 2.1), 2)
    assert _is_over(losses(3, 2, 2.1, 2.2), 2)
    assert not _is_over(losses(3, 2, 2.1, 2.2), 0)
    assert not _is_over([], 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patience": 3}, "need a validation part"),
        ({"plateau_patience": 3, "validation_share": 0.2}, "does not go with the cosine schedule"),
        ({"validation_share": 0.6}, "must be in 0-0.5"),
        ({"epochs": 0}, "epochs=0 must be > 0"),
        ({"weight_decay": -1.0}, "must be >= 0"),
    ],
)
def test_recipes_that_contradict_themselves(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe(**changes)


def test_every_family_has_a_recipe_of_ours_and_of_its_document() -> None:
    assert set(RECIPES) == set(DOCUMENT_RECIPES) == set(networks.TASKS)
    for family in ("midlevel", "a2e", "a2mid2e", "joint"):
        recipe = DOCUMENT_RECIPES[family]
        assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size, recipe.patience) == ("adam", 5e-4, 8, 50)
    assert (DOCUMENT_RECIPES["emotion"].labels, DOCUMENT_RECIPES["emotion"].learning_rate) == ("binary", 5e-5)
    assert DOCUMENT_RECIPES["crnn"].waveform_copies > 0


def test_the_rules_that_make_labels_of_shares() -> None:
    shares = np.array([[0.1, 0.0], [0.2, 1.0], [0.3, 0.2], [0.2, 0.9]], np.float32)
    np.testing.assert_allclose(emotion_cut(shares), [0.4, 0.55])  # the second spreads by more than 0.2: its median
    flat = np.full((1, 9), 0.2, np.float32)
    assert multi_hot(flat).sum() == 0
    steep = np.array([[0.9, 0.5, 0.4, 0, 0, 0, 0, 0, 0]], np.float32)  # SD 0.306: the four highest
    assert multi_hot(steep)[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_smote_adds_segments_between_those_of_the_rare_label() -> None:
    rng = np.random.default_rng(0)
    arrays = [np.full((3, 4, 5), 10.0 * (k < 4), np.float32) + rng.normal(size=(3, 4, 5)).astype(np.float32) for k in range(24)]
    labels = np.zeros((24, 2), np.float32)
    labels[:4, 0], labels[::2, 1] = 1, 1
    held = Examples(arrays, {"emotion": labels}, np.full(24, 0.5, np.float32), time_axis=1)
    found = balanced(held, EmotionRecipe(smote_ratio=0.5, smote_segments=2))
    added = found.targets["emotion"][24:]
    assert len(added) == 20 - 8  # 8 of 48 segments are positive: up to half of the 40 negatives
    assert (added[:, 0] == 1).all()
    assert len(found.arrays) == len(found.weights) == 24 + 12
    assert found.arrays[-1].shape == (1, 4, 5)
    assert all(8 < float(array.mean()) < 12 for array in found.arrays[24:])
    np.testing.assert_array_equal(found.targets["emotion"][:24], labels)


def test_early_stopping_keeps_the_best_weights_and_survives_a_stop(tmp_path: Path) -> None:
    import keras

    rng = np.random.default_rng(0)

    def examples(count: int, noise: float) -> Examples:
        x = rng.normal(size=(count, 1, 6)).astype(np.float32)
        targets = (x[:, 0, :2] + rng.normal(0, noise, (count, 2))).astype(np.float32)
        return Examples(list(x), {"y": targets}, np.ones(count, np.float32), channel=False)

    learn, held = examples(8, 3.0), examples(16, 0.1)
    recipe = Recipe(epochs=12, batch_size=8, learning_rate=0.3, time_masks=0, frequency_masks=0, dtype="float32",
                    optimizer="adam", schedule="constant", validation_share=0.2, patience=3, plateau_patience=2)  # fmt: skip

    def trained(folder: Path, how: Recipe) -> tuple[list[dict[str, float]], Any]:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        model = keras.Model(inputs, {"y": keras.layers.Dense(2)(inputs)})
        return fit(model, {"y": Head("mse")}, learn, how, folder, held), model

    history, model = trained(tmp_path / "whole", recipe)
    best = min(range(len(history)), key=lambda k: history[k]["val_loss"])
    assert len(history) == min(12, best + 1 + 3)
    measured = np.mean([(model.predict_on_batch(x)["y"] - y) ** 2 for x, y in zip(held.arrays, held.targets["y"], strict=True)])
    assert measured == pytest.approx(history[best]["val_loss"], rel=1e-3)
    again, same = trained(tmp_path / "whole", recipe)
    assert again == history
    np.testing.assert_allclose(same.get_weights()[0], model.get_weights()[0], rtol=1e-6)
    with pytest.raises(ValueError, match="need a validation part"):
        fit(model, {"y": Head("mse")}, learn, recipe, tmp_path / "none")


def test_recipes_are_shown_and_changed_by_flags(in_process: Callable[..., Result]) -> None:
    shown = in_process("train", "emotion,probe", "--show-recipe", "--smote-ratio", "0.3")
    assert shown.exit_code == 0, shown.output
    assert "emotion: shares of listeners" in shown.output
    assert "--smote-ratio              0.3" in shown.output
    assert "--cost                     1000.0" in shown.output
    changed = in_process("train", "descriptors", "--show-recipe", "--ridges", "notes,descriptors+notes", "--penalties", "1,30")
    assert changed.exit_code == 0, changed.output
    assert "--ridges                   notes,descriptors+notes" in changed.output
    assert "--penalties                1,30" in changed.output
    document = in_process("train", "emotion", "--recipe", "document", "--show-recipe").output
    assert "--learning-rate            5e-05" in document
    stray = in_process("train", "probe", "--epochs", "3", "--show-recipe")
    assert stray.exit_code == 2
    assert "--epochs belongs to" in stray.output
    useless = in_process("train", "va", "--crop-frames", "60", "--show-recipe")
    assert useless.exit_code == 2
    assert "--crop-frames belongs to midlevel, a2e, a2mid2e, joint, not to va" in useless.output
    both = in_process("train", "va,joint", "--crop-frames", "60", "--show-recipe").output
    assert both.count("--crop-frames") == 1
    wrong = in_process("train", "va", "--patience", "3", "--show-recipe")
    assert wrong.exit_code == 2
    assert "need a validation part" in wrong.output
    assert in_process("train", "nothing", "--show-recipe").exit_code == 2


@pytest.mark.filterwarnings("ignore:In the future .np.object:FutureWarning")  # Keras's patch of tf2onnx
def test_the_deam_recipe_on_audio_in_its_layout(in_process: Callable[..., Result], tmp_path: Path) -> None:
    """Songs of pulses whose pace and pitch follow arousal and valence, labels and split files as DEAM has them."""
    root = tmp_path / "deam"
    audio = root / "MEMD_audio"
    songs = root / "annotations" / "annotations averaged per song" / "song_level"
    for folder in (audio, songs):
        folder.mkdir(parents=True)
    rows = []
    for number in range(12):
        valence, arousal = 2 + 0.5 * (number % 4), 2 + 0.5 * number
        time = np.arange(2 * 22_050) / 22_050
        pulse = np.exp(-8 * ((time * arousal / 2) % 1))
        wave = 0.3 * pulse * np.sin(2 * np.pi * 220 * 2 ** (valence / 12) * time)
        soundfile.write(audio / f"{1001 + number}.wav", wave.astype(np.float32), 22_050)
        rows.append((1001 + number, valence, 1.0 + 0.1 * (number % 3), arousal, 1.2 + 0.1 * (number % 5)))
    columns = ["song_id", " valence_mean", " valence_std", " arousal_mean", " arousal_std"]
    pd.DataFrame(rows, columns=columns).to_csv(songs / "static_annotations_averaged_songs_1_2000.csv", index=False)
    for part, ids in (("train", range(1001, 1009)), ("validation", (1009, 1010)), ("test", (1011, 1012))):
        (root / f"split_{part}.txt").write_text("\n".join(str(key) for key in ids))
    out = tmp_path / "bundle"
    done = in_process("train", "va", root, "--split", root, "--epochs", "2", "--jobs", "1", "--out", out)
    assert done.exit_code == 0, done.output
    held = pd.read_parquet(tmp_path / "bundle.work" / "va" / "fold0" / "oof.parquet")
    assert sorted(held["track_key"].astype(int)) == [1011, 1012]
    assert held["va_valence_mean"].between(0.37, 9.5).all()
    validation = pd.read_parquet(tmp_path / "bundle.work" / "va" / "fold0" / "validation.parquet")
    assert sorted(validation["track_key"].astype(int)) == [1009, 1010]
    from models import bundle

    trained = bundle.load(str(out))
    assert trained.trained_on("va") == {"deam": frozenset(str(key) for key in range(1001, 1013))}


MUSE_IDS = [f"{number:02d}xkOaSrkexMciUUogZKVTS" for number in range(12)]


@pytest.fixture
def muse_corpus(tmp_path: Path) -> Path:
    """Tones named by Spotify ids under a MuSe table, two an artist, pitch and level by its norms; two ids without audio."""
    root = tmp_path / "muse"
    (root / "audio").mkdir(parents=True)
    lines = [
        "lastfm_url,track,artist,seeds,number_of_emotion_tags,valence_tags,arousal_tags,dominance_tags,mbid,spotify_id,genre"
    ]
    for number, key in enumerate([*MUSE_IDS, "zzxkOaSrkexMciUUogZKVT", "yyxkOaSrkexMciUUogZKVT"]):
        valence, arousal, dominance = 2 + 0.5 * number, 2 + 0.5 * (number % 5), 8 - 0.5 * number
        lines.append(f"u,Song {number},Artist {number // 2},['a'],6,{valence},{arousal},{dominance},m,{key},metal")
        if key in MUSE_IDS:
            time = np.arange(2 * 22_050) / 22_050
            wave = 0.05 * arousal * np.sin(2 * np.pi * 220 * 2 ** (valence / 6) * time)
            soundfile.write(root / "audio" / f"{key}.wav", wave.astype(np.float32), 22_050)
    (root / "muse_v3.csv").write_text("\n".join(lines))
    return root


@pytest.mark.filterwarnings("ignore:In the future .np.object:FutureWarning")  # Keras's patch of tf2onnx
def test_muse_gives_its_own_word_norms(in_process: Callable[..., Result], muse_corpus: Path, tmp_path: Path) -> None:
    """CRNN on audio in MuSe's layout: V/A/D are the table's columns, artists are groups, its genres are none of ours."""
    from annotate import training
    from models import bundle

    rated = training.gather([muse_corpus], tmp_path / "bundle.work", jobs=1)
    table = rated.table.set_index("track_key").loc[MUSE_IDS]
    assert table["vad_valence"].tolist() == [2 + 0.5 * number for number in range(12)]
    assert table["vad_dominance"].tolist() == [8 - 0.5 * number for number in range(12)]
    assert table["split_group"].nunique() == 6
    assert table["grouped"].all()
    assert "va_valence_mean" not in table  # word norms are no listeners' ratings
    assert any("2 rated ids have no audio" in line and "zzxk" in line for line in rated.messages["muse"])
    out = tmp_path / "bundle"
    flags = ("--epochs", "1", "--crops-per-track", "1", "--recalibration-batches", "1", "--folds", "2", "--jobs", "1")
    done = in_process("train", "crnn", muse_corpus, *flags, "--out", out)
    assert done.exit_code == 0, done.output
    trained = bundle.load(str(out))
    assert trained.trained_on("crnn") == {"muse": frozenset(MUSE_IDS)}
    assert "genres" not in trained.families["crnn"].details  # no track taught it any
    assert trained.families["crnn"].details["training"]["configurations_tried"] == 1
    columns = pd.read_parquet(out / "oof.parquet")
    assert columns["crnn_dominance"].notna().sum() == 6
    table = tmp_path / "t.parquet"
    annotated = in_process("run", muse_corpus, "--bundle", out, "--models", "crnn", "--limit", "1", "--jobs", "1", "--out", table)
    assert annotated.exit_code == 0, annotated.output
    assert "genre" not in pd.read_parquet(table)
    assert pd.read_parquet(table)["crnn_valence"].between(1, 9).all()


def test_what_training_says_of_a_corpus_that_it_cannot_use(
    in_process: Callable[..., Result], muse_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"

    def refused(*arguments: object) -> str:
        done = in_process("train", *arguments, "--jobs", "1", "--out", out)
        assert done.exit_code == 1
        assert not out.exists()
        return str(done.output)

    assert "no track of muse has what va learns (va_valence_mean" in refused("va", muse_corpus)
    assert "12 ids belong to more than one file: muse 00xkOaSrkexMciUUogZKVTS (" in refused("crnn", muse_corpus, muse_corpus)
    assert "6 artists or albums cannot be split into 9 folds" in refused("crnn", muse_corpus, "--folds", "9")
    labels = tmp_path / "labels.csv"
    labels.write_text("id,valence,arousal\nnobody,2,3\n")
    said = refused("va", muse_corpus, "--labels", labels, "--labels-for", "va")
    assert "none of its 1 ids (nobody) is that of a track" in said
    labels.write_text("id,valence,arousal\n" + "".join(f"{key},2,3\n" for key in MUSE_IDS))
    assert "va_valence_mean is 2 for all 12 tracks" in refused("va", muse_corpus, "--labels", labels, "--labels-for", "va")
    (muse_corpus / "audio" / f"{MUSE_IDS[3]}.wav").write_bytes(b"RIFF and no more")
    assert f"{MUSE_IDS[3]}.wav" in refused("crnn", muse_corpus)
