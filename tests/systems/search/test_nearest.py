"""Nearest rows and near duplicates against brute force, faiss, and real CLIP vectors."""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from triptych.systems.search import nearest as module
from triptych.systems.search.nearest import duplicates, faiss_recall, nearest, nearest_by_faiss


def unit(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1)


def names(count: int) -> list[str]:
    return [f"{(i * 7919) % count:05d}" for i in range(count)]  # in no order


@pytest.mark.parametrize("k", [1, 5, 400])
def test_matches_are_the_sorted_cosines_in_double_precision(monkeypatch, k) -> None:
    monkeypatch.setattr(module, "CHUNK", 37)
    rows, query = unit(300, 24), unit(1, 24, seed=1)[0]
    cosines = rows.numpy().astype(np.float64) @ query.numpy().astype(np.float64)
    order = np.argsort(-cosines)[:k]
    found = nearest(rows.split([100, 1, 199]), names(300), query, k)
    assert [m.name for m in found] == [names(300)[i] for i in order]
    assert np.allclose([m.score for m in found], cosines[order], atol=1e-12)


def test_ties_are_broken_by_name_wherever_the_rows_lie(monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)
    rows = unit(100, 24)
    same = [3, 17, 18, 41, 55, 77, 99]
    rows[same] = rows[3].clone()
    called = names(100)
    found = nearest([rows[:50], rows[50:]], called, rows[3], 4)
    assert [m.name for m in found] == sorted(called[i] for i in same)[:4]
    assert len({m.score for m in found}) == 1


def test_a_query_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="different models"):
        nearest([unit(5, 24)], names(5), unit(1, 16)[0], 1)
    with pytest.raises(ValueError, match="k must be"):
        nearest([unit(5, 24)], names(5), unit(1, 24)[0], 0)


def test_faiss_gives_the_exact_matches() -> None:
    pytest.importorskip("faiss")
    rows = unit(2000, 24)
    rows[[4, 1500]] = rows[4].clone()
    for query in [rows[4], *unit(5, 24, seed=1)]:
        exact = nearest(rows.split(700), names(2000), query, 10)
        assert nearest_by_faiss(rows.split(700), names(2000), query, 10, None) == exact


def test_inverted_lists_find_nearly_all_and_are_kept(tmp_path: Path, monkeypatch) -> None:
    """Beyond a number of rows faiss looks at an eighth of them: recall against exact search."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(module, "LARGE", 1000)
    centres = unit(40, 24)
    rows = F.normalize(centres.repeat(100, 1) + 0.4 * unit(4000, 24, seed=2), dim=1)
    store = tmp_path / "nearest-a.faiss"
    (tmp_path / "nearest-old.faiss").write_bytes(b"of other rows")
    hits = 0
    for query in F.normalize(centres + 0.4 * unit(40, 24, seed=3), dim=1):
        exact = nearest([rows], names(4000), query, 10)
        found = nearest_by_faiss([rows], names(4000), query, 10, store)
        hits += len({m.name for m in exact} & {m.name for m in found})
        assert found == sorted(found, key=lambda m: (-m.score, m.name))
    assert hits >= 0.9 * 400
    assert [p.name for p in tmp_path.iterdir()] == ["nearest-a.faiss"]
    monkeypatch.setattr(module, "ROUNDING", None)  # not used when what is kept is read
    before = store.stat().st_mtime_ns
    assert nearest_by_faiss([rows], names(4000), centres[0], 10, store)
    assert store.stat().st_mtime_ns == before
    store.write_bytes(b"damaged")
    assert nearest_by_faiss([rows], names(4000), centres[0], 10, store)
    assert store.stat().st_size > 4000 * 24 * 4


def test_a_missing_faiss_names_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r'pip install "triptych\[search\]"'):
        nearest_by_faiss([unit(5, 24)], names(5), unit(1, 24)[0], 1, None)


def groups_by_walking(rows: torch.Tensor, threshold: float) -> list[tuple[int, ...]]:
    """Connected rows by plain search over all pairs."""
    cosines = rows.double() @ rows.double().T
    near: dict[int, set[int]] = {i: set() for i in range(len(rows))}
    for i, j in combinations(range(len(rows)), 2):
        if cosines[i, j] >= threshold - 1e-6:
            near[i].add(j)
            near[j].add(i)
    found, seen = [], set()
    for start in range(len(rows)):
        group, waiting = set(), [start]
        while waiting:
            row = waiting.pop()
            if row not in group:
                group.add(row)
                waiting += near[row]
        if start not in seen and len(group) > 1:
            found.append(tuple(sorted(group)))
        seen |= group
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_groups_are_the_connected_rows(monkeypatch, seed, threshold) -> None:
    """In three dimensions there are chains: at 0.9 some are long, at 0.5 all hang together."""
    monkeypatch.setattr(module, "SIDE", 16)
    rows = unit(150, 4, seed)
    rows[[7, 70, 149]] = rows[7].clone()
    *_, last = duplicates(rows.split([60, 90]), threshold)
    assert list(last.groups) == groups_by_walking(rows, threshold)
    assert any({7, 70, 149} <= set(group) for group in last.groups)


def test_progress_of_comparing_rises_to_one(monkeypatch) -> None:
    monkeypatch.setattr(module, "SIDE", 16)
    shares = [found.done for found in duplicates([unit(100, 8)], 0.99)]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 7


def test_nothing_and_one_row_have_no_duplicates() -> None:
    assert list(duplicates([], 0.9))[-1].groups == ()
    assert list(duplicates([unit(1, 8)], 0.9))[-1].groups == ()
    with pytest.raises(ValueError, match="threshold"):
        next(duplicates([], 0.0))


def test_real_clip_vectors_are_found_by_what_their_captions_say(real_data: Path) -> None:
    """OpenAI's ViT-B/32 on 1,000 pictures of Flickr8k: the 50 nearest to "a dog" show dogs (a
    quarter of all do), and the nearest tenth has most of the few with other things in their
    captions.
    """
    folder = real_data / "clip_embeddings"
    image = np.load(folder / "flickr8k_train1000_vitb32_image.npy").astype(np.float32)
    text = np.load(folder / "coco80_vitb32_text.npy").astype(np.float32)
    labels = json.loads((folder / "coco80_names.json").read_text())
    said = json.loads((folder / "flickr8k_train1000_rows.json").read_text())
    rows = F.normalize(torch.from_numpy(image), dim=1)
    called = [f"{i:04d}" for i in range(1000)]

    def seen(label: str, k: int) -> tuple[float, float]:
        """Precision and recall of the k nearest."""
        query = F.normalize(torch.from_numpy(text[labels.index(label)]), dim=0)
        has = [label in row["caption"].lower() for row in said]
        hits = sum(has[int(m.name)] for m in nearest([rows], called, query, k))
        return hits / k, hits / sum(has)

    assert seen("dog", 50)[0] >= 0.9
    for label in ("bicycle", "snowboard", "skateboard", "boat", "horse"):
        assert seen(label, 100)[1] >= 0.7, label


@pytest.mark.parametrize("probes", [1, 1000])
def test_recall_is_the_share_of_true_neighbours_that_faiss_finds(
    monkeypatch, tmp_path: Path, probes: int
) -> None:
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(module, "CHUNK", 300)
    rows, store = unit(1600, 16), tmp_path / "nearest-x.faiss"
    nearest_by_faiss([rows], names(1600), rows[0], 3, store)
    index = faiss.read_index(str(store))
    index.nprobe = probes
    faiss.write_index(index, str(store))
    queries = rows.numpy()[[number * 1600 // 32 for number in range(32)]]
    true = np.argsort(-(queries @ rows.numpy().T), axis=1)[:, :10]
    found = index.search(queries, 10)[1]
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(true, found, strict=True)])
    assert faiss_recall(rows.split([500, 1100]), store) == pytest.approx(share)
    assert (share == 1) == (probes == 1000)
