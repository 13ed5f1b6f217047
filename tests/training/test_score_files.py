"""Laws of kept scores: they come back as they were, an altered byte is found, an erased contact is in none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.lake import Lake
from features.store import StoreError
from training.score_files import KeptScores, erase_from_scores, find_scores, keep_scores, read_scores, remove_scores


def _scores(n: int, seed: int = 0) -> KeptScores:
    rng = np.random.default_rng(seed)
    keys = rng.permutation(np.arange(1, n + 1))
    return KeptScores(keys, rng.random(n, dtype=np.float32), np.full(n, 0.2, dtype=np.float32))


def _all(lake: Lake, folder: str) -> dict[int, tuple[float, float]]:
    found = find_scores(lake, folder)
    parts = [read_scores(lake, found, bucket) for bucket in range(lake.buckets)]
    return {
        int(key): (float(p), float(q))
        for part in parts
        for key, p, q in zip(part.contact_key, part.probability, part.fallback, strict=True)
    }


@given(n=st.integers(0, 60), gone=st.sets(st.integers(1, 60), max_size=10))
def test_what_was_kept_comes_back_without_the_erased(n: int, gone: set[int]) -> None:
    """Each contact in its own bucket, with the very numbers; of those erased nothing, and the count is told."""
    lake = Lake(f"memory://scores-{n}-{'-'.join(map(str, sorted(gone)))}", buckets=8)
    scores = _scores(n)
    kept = keep_scores(lake, "churn", 3, 10**15, scores)
    expected = {
        int(key): (float(p), float(q))
        for key, p, q in zip(scores.contact_key, scores.probability, scores.fallback, strict=True)
    }

    assert (kept.rows, _all(lake, kept.folder)) == (n, expected)
    erased = erase_from_scores(lake, gone)
    assert erased == len(gone & expected.keys())
    assert _all(lake, kept.folder) == {key: value for key, value in expected.items() if key not in gone}


def test_an_altered_file_is_found_and_an_erasure_removes_what_it_cannot_read(tmp_path: Path) -> None:
    """One byte is enough; nobody can tell who is in it, so it goes."""
    lake = Lake(str(tmp_path), buckets=4)
    kept = keep_scores(lake, "churn", 1, 10**15, _scores(100))
    bucket, file = next(iter(kept.files.items()))
    path = tmp_path / kept.folder / file.name
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    with pytest.raises(StoreError, match="cannot be judged any more"):
        read_scores(lake, kept, bucket)
    key = int(_scores(100).contact_key[lake.bucket_of(_scores(100).contact_key) == bucket][0])
    assert erase_from_scores(lake, [key]) == 0
    with pytest.raises(LookupError, match="pruned or removed"):
        find_scores(lake, kept.folder)


def test_a_million_contacts_take_few_bytes_each(tmp_path: Path) -> None:
    """About seven bytes a contact, so a month of daily scores of a million stays below 250 MB."""
    lake = Lake(str(tmp_path), buckets=8)
    kept = keep_scores(lake, "churn", 1, 10**15, _scores(200_000))

    assert sum(file.size for file in kept.files.values()) / kept.rows < 7
    remove_scores(lake, kept.folder)
    assert lake.store.list("scores") == []


def test_a_name_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        keep_scores(Lake(str(tmp_path), buckets=4), "../x", 1, 0, _scores(1))
