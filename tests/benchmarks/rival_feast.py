"""One contact's 40 features from Feast's SDK and its SQLite store; run by an environment that has Feast.

Feast stores finished vectors and looks them up; it neither computes windows nor empties them as time passes. That is
less work than reading a contact's events and computing 84 features as of now. Its store is filled with 20 k contacts,
not a million: materialising takes long, and a lookup by primary key hardly depends on it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.benchmarks.measuring import latency

CONTACTS, COLUMNS, CALLS = 20_000, 40, 2_000


def main(folder: Path) -> dict[str, Any]:
    """Milliseconds of `get_online_features` for one contact and for a hundred."""
    os.environ["FEAST_USAGE"] = "False"
    os.environ["DO_NOT_TRACK"] = "1"
    import feast
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    now = datetime.now(UTC)
    names = [f"f{i:02d}" for i in range(COLUMNS)]
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.random((CONTACTS, COLUMNS)), columns=names)
    frame["contact_key"] = np.arange(1, CONTACTS + 1)
    frame["event_timestamp"] = pd.Timestamp(now - timedelta(hours=1))
    frame.to_parquet(folder / "vectors.parquet")
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    contact = Entity(name="contact", join_keys=["contact_key"], value_type=ValueType.INT64)
    view = FeatureView(
        name="vectors",
        entities=[contact],
        ttl=timedelta(days=1),
        schema=[Field(name=name, dtype=Float64) for name in names],
        source=FileSource(path=str(folder / "vectors.parquet"), timestamp_field="event_timestamp"),
    )
    store.apply([contact, view])
    began = time.perf_counter()
    store.materialize(now - timedelta(days=1), now)
    materialised = time.perf_counter() - began
    features = [f"vectors:{name}" for name in names]
    keys = rng.integers(1, CONTACTS + 1, (CALLS, 100)).tolist()

    def read(some: list[int]) -> dict[str, list[Any]]:
        return store.get_online_features(features, [{"contact_key": key} for key in some]).to_dict()

    assert read([7])["f00"] == [frame["f00"][6]]
    return {
        "version": feast.__version__,
        "contacts": CONTACTS,
        "columns": COLUMNS,
        "materialise_seconds": round(materialised, 1),
        "one_contact": latency([lambda some=some: read(some[:1]) for some in keys]),
        "hundred_contacts": latency([lambda some=some: read(some) for some in keys[:200]]),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
