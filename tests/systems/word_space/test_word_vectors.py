"""Word vectors: every form gives the same numbers, damage is named, and real files make sense."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from triptych.systems.word_space.word_vectors import read_word_vectors

WORDS = {"fire": [1.0, 0.0, -2.5], "truck": [3.0, 2.0, 0.5], "cat": [0.25, -1.0, 4.0]}
LINES = "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in WORDS.items())


def written(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def forms(folder: Path) -> list[Path]:
    arrays = folder / "v.npz"
    np.savez(
        arrays, words=np.array(list(WORDS)), vectors=np.array(list(WORDS.values()), np.float64)
    )
    return [
        arrays,
        written(folder, "glove.txt", LINES),
        written(folder, "glove.6B.3d.txt.gz", LINES),
        written(folder, "word2vec.vec", f"3 3\n{LINES}".replace("\n", " \n")),
        written(folder, "windows.txt", LINES.replace("\n", "\r\n").rstrip()),
        written(folder, "v.json", json.dumps(WORDS)),
        written(folder, "v.json.gz", json.dumps(WORDS)),
    ]


def test_every_form_gives_the_same_numbers(tmp_path):
    for path in forms(tmp_path):
        found = read_word_vectors(path)
        assert found.words == tuple(WORDS), path
        assert found.vectors.dtype == np.float32
        np.testing.assert_array_equal(found.vectors, np.array(list(WORDS.values()), np.float32))


def test_a_word_may_hold_spaces(tmp_path):
    path = written(tmp_path, "glove.840B.txt", f"{LINES}. . . 7 8 9\n")
    assert read_word_vectors(path).words[-1] == ". . ."


def test_a_name_of_several_words_is_their_mean(tmp_path):
    vectors = read_word_vectors(written(tmp_path, "v.json", json.dumps(WORDS)))
    for name in ("fire truck", "fire_truck", "Fire-Truck", "fire  truck"):
        np.testing.assert_allclose(vectors.of([name]), [[2.0, 1.0, -1.0]])
    np.testing.assert_allclose(vectors.of(["Cat", "cat"]), [WORDS["cat"]] * 2)
    whole = WORDS | {"fire_truck": [9.0, 9.0, 9.0], "Cat": [0.0, 0.0, 0.0]}
    vectors = read_word_vectors(written(tmp_path, "whole.json", json.dumps(whole)))
    np.testing.assert_allclose(vectors.of(["Fire truck"]), [[9.0, 9.0, 9.0]])
    np.testing.assert_allclose(vectors.of(["Cat", "CAT"]), [[0.0, 0.0, 0.0], WORDS["cat"]])


def test_unknown_words_are_all_named_with_the_nearest_known_ones(tmp_path):
    vectors = read_word_vectors(written(tmp_path, "v.json", json.dumps(WORDS)))
    with pytest.raises(ValueError, match=r"'trucks' \(similar: truck\); 'xyzzy'\. Rename"):
        vectors.of(["cat", "fire trucks", "xyzzy"])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", f"{LINES}dog 1.0 2.0\n", "line 4 has 2 numbers instead of 3"),
        ("a.txt", f"{LINES}dog 1.0 x 2.0\n", "line 4, 'dog'"),
        ("a.txt", f"{LINES}\n", "line 4 is empty"),
        ("a.txt", f"4 3\n{LINES}", "says 4 words, but there are 3"),
        ("a.txt", f"3 2\n{LINES}dog 1.0\n", "line 5"),
        ("a.txt", f"{LINES}dog 1.0 nan 2.0\n", "'dog' is not finite"),
        ("a.txt", LINES + LINES, "3 repeated words, such as 'fire'"),
        ("a.txt", "", "no words"),
        ("a.txt", b"\xff\xfe 1 2\n", "cannot be read as word vectors"),
        ("a.bin", b"3 3\nxx", "binary format"),
        ("a.json", "[1, 2]", "an object from each word"),
        ("a.json", '{"a": [1, 2], "b": [1]}', "'b' does not have a list of 2 numbers"),
        ("a.json", '{"a": [1, true]}', "'a' does not have a list"),
        ("a.json", '{"a": [1], "a": [2]}', "twice"),
        ("a.json", '{"a": [1', "a.json cannot be read"),
        ("a.npz", b"PK\x03\x04 and no more", "a.npz"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, name, data, message):
    with pytest.raises(ValueError, match=message):
        read_word_vectors(written(tmp_path, name, data))


def test_arrays_of_other_kinds_are_refused(tmp_path):
    cases = [
        ({"w": np.zeros(2)}, "it has w; expected the arrays"),
        ({"words": np.array([1, 2]), "vectors": np.zeros((2, 3))}, "list of strings"),
        ({"words": np.array(["a", "b"]), "vectors": np.zeros((3, 3))}, r"shape \(2, E\)"),
        ({"words": np.array(["a", None]), "vectors": np.zeros((2, 3))}, "cannot be read"),  # pickle
    ]
    for arrays, message in cases:
        np.savez(tmp_path / "v.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            read_word_vectors(tmp_path / "v.npz")


def test_a_cut_gzip_and_a_missing_file_are_named(tmp_path):
    path = written(tmp_path, "v.txt.gz", LINES * 1)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"v\.txt\.gz cannot be read"):
        read_word_vectors(path)
    with pytest.raises(ValueError, match="there is no file"):
        read_word_vectors(tmp_path / "none.txt")


def test_real_vectors_know_that_cats_are_like_dogs(real_data):
    """The vectors of Socher et al. themselves, and GloVe."""
    names = ["airplane", "automobile", "bird", "cat", "deer"]
    names += ["dog", "frog", "horse", "ship", "truck"]
    for file, count, width in (
        ("socher2013/cifar10_huang2012_50d.json", 10, 50),
        ("glove.twitter.27B.25d.top12k.txt.gz", 11_925, 25),
    ):
        found = read_word_vectors(real_data / "word_vectors" / file)
        assert found.vectors.shape == (count, width)
        vectors = found.of(names)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        alike = unit @ unit.T - 2 * np.eye(10)
        assert names[alike[3].argmax()] == "dog" and names[alike[1].argmax()] == "truck"
