import numpy as np
import pandas as pd
import pytest

from annotate import bundling
from annotate.schema import known_tracks, title_key, was_in_training
from models import bundle


def test_the_built_in_bundle_names_its_training_tracks():
    held = bundle.load("default")
    known = known_tracks(held)
    assert {"midlevel", "joint", "emotion", "probe", "crnn", "va", "descriptors"} <= set(known)
    row = {"corpus": "emotify", "track_key": "1", "artist": None, "title": None, "audio_sha256": "x"}
    assert "emotion" in was_in_training(row, known).split(",")
    assert "midlevel" not in was_in_training(row, known).split(",")
    assert was_in_training(row | {"corpus": "folder", "track_key": "emotify/1.mp3"}, known) == ""


def test_a_training_track_is_known_by_its_title_elsewhere():
    known = {"emotion": {"keys": frozenset({"emotify:1"}), "digests": frozenset({"abc"}), "titles": frozenset({"a b|c"})}}
    row = {"corpus": "folder", "track_key": "x.mp3", "artist": " A  b", "title": "C", "audio_sha256": "d"}
    assert was_in_training(row, known) == "emotion"
    assert was_in_training(row | {"artist": None}, known) == ""
    assert was_in_training(row | {"artist": None, "audio_sha256": "abc"}, known) == "emotion"
    assert title_key("A", None) is None


@pytest.mark.corpus
def test_the_cards_scores_follow_from_the_bundles_own_predictions():
    from pathlib import Path

    from annotate.corpora import scan

    data = Path(__file__).parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the rated music is not beside the checkout")
    held = bundle.load("default")
    predictions = pd.read_parquet(held.file("oof.parquet"))
    checked = 0
    for corpus, folder, prefix, family in (
        ("soundtracks", "soundtracks", "desc_film", "descriptors"),
        ("soundtracks", "soundtracks", "film", "joint"),
        ("emotify", "emotify", "desc_gems", "descriptors"),
        ("emotify", "emotify", "gems", "probe"),
    ):
        stated = held.families[family].details["scores"][f"{prefix} on {corpus}"]
        rows = predictions[predictions["corpus"] == corpus].set_index("track_key")
        rated = scan([data / folder]).ratings
        for label, r in stated["r"].items():
            both = pd.concat([rows[f"{prefix}_{label}"], rated[f"rated_{label}"]], axis=1, join="inner").dropna()
            assert len(both) == stated["tracks"]
            assert np.corrcoef(both.T)[0, 1] == pytest.approx(r, abs=6e-4)
            checked += 1
    assert checked == 8 + 8 + 9 + 9


def test_a_published_bundle_is_never_overwritten(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ValueError, match="a published version never changes"):
        bundling.write_bundle(None, tmp_path, tmp_path, (), name="x", version="1")


@pytest.mark.parametrize("family", ["vaseq", "vatransfer"])
def test_the_graph_of_a_note_sequence_network_is_that_network(family, tmp_path):
    from models import export, va

    random = np.random.default_rng(0)
    if family == "vaseq":
        network = va.build_sequence()
    else:
        mean, spread = random.normal(size=(2, 64))
        network = va.build_transferred(
            va.TransferredArchitecture(mean=tuple(mean), standard_deviation=tuple(np.abs(spread) + 0.1))
        )
    weights = [random.normal(0, 0.05, weight.shape) for weight in network.get_weights()]  # larger ones are chaotic over 512 notes
    weights[-1] = np.array([-5.0, 1.0, 2.0, 3.0])
    network.set_weights(weights)
    notes = np.zeros((4, 512, 4), np.float32)
    for track, count in enumerate((0, 1, 40, 512)):
        notes[track, :count] = np.abs(random.normal(size=(count, 4))) + 0.1
    path = tmp_path / "graph.onnx"
    path.write_bytes(export.sequence_graph(network))
    expected = network.predict_on_batch(notes)["va"]
    np.testing.assert_allclose(bundle.run_engine(path, notes)["va"], expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3  # tracks differ
    assert (expected == np.float32(va.FLOOR)).sum() == (4 if family == "vatransfer" else 0)
