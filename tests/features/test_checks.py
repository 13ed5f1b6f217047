"""Laws of the feature store's checks: drift is told from chance, a served vector that is not the lake's is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from features.checks import (
    MIN_VECTORS,
    Reference,
    Replay,
    ServedVectors,
    drift,
    freshness,
    missing_shares,
    reference_of,
    replay,
    sample_vectors,
)
from features.events import DAY_MICROS, NewEvent, append
from features.lake import Lake
from features.online import served_features
from features.tables import from_micros
from features.views import DEFAULT_VIEWS, SEND_HOUR_VIEWS, VIEW_SETS
from features.vocabulary import EMAIL_CLICKED, EMAIL_SENT, IDENTIFY, ORDER_COMPLETED, PAGE
from service.database import Database

START = 1_760_000_000_000_000
SPAN = 60 * DAY_MICROS
BY_VERSION = {views.version: views for views in VIEW_SETS.values()}

# --- Drift -------------------------------------------------------------------------------------------------------

KINDS = 5


def _population(random: np.random.Generator, n: int, features: int = 80) -> np.ndarray:
    """Features such as a view set has: smooth ones, counts with many zeros, money, shares, mostly missing ones."""
    X = np.empty((n, features))
    for column in range(features):
        kind = column % KINDS
        if kind == 0:
            X[:, column] = random.normal(size=n)
        elif kind == 1:
            X[:, column] = random.poisson(0.3, n)
        elif kind == 2:
            X[:, column] = np.where(random.random(n) < 0.7, 0.0, np.round(random.lognormal(8, 1, n)))
        elif kind == 3:
            X[:, column] = random.random(n) < 0.02
        else:
            X[:, column] = np.where(random.random(n) < 0.8, np.nan, random.exponential(30, n))
    return X


def _names(X: np.ndarray) -> list[str]:
    return [f"f{column}" for column in range(X.shape[1])]


@pytest.mark.parametrize("n", [100, 1_000, 20_000])
def test_fresh_draws_of_the_same_distribution_are_no_drift(n: int):
    """80 features of five kinds, 20 pairs of populations, at 100, 1,000 and 20,000 vectors: no alarm."""
    random = np.random.default_rng(3)

    for _ in range(20 if n < 20_000 else 3):
        then, now = _population(random, n), _population(random, n)
        found = drift(reference_of(then, _names(then)), now, _names(then))
        assert [one.name for one in found if one.is_shifted] == []


def test_small_samples_move_psi_far_and_still_raise_no_alarm():
    """At 100 vectors chance alone takes PSI past 0.25, the usual bound; it is the sample's size that forbids alarm."""
    random = np.random.default_rng(4)
    psi = []
    for _ in range(20):
        then, now = _population(random, 100), _population(random, 100)
        psi += [one.psi for one in drift(reference_of(then, _names(then)), now, _names(then))]

    assert max(psi) > 0.25


def test_shifted_data_is_found_in_every_kind_of_feature():
    """2,000 vectors each: moved, more zeros, other money, a share that grew, values that went missing."""
    random = np.random.default_rng(5)
    then, now = _population(random, 2_000, KINDS), _population(random, 2_000, KINDS)
    now[:, 0] += 0.6
    now[:, 1] = random.poisson(1.0, 2_000)
    now[:, 2] = np.where(now[:, 2] > 0, now[:, 2], np.where(random.random(2_000) < 0.5, 5_000.0, 0.0))
    now[:, 3] = random.random(2_000) < 0.3
    now[random.random(2_000) < 0.9, 4] = np.nan
    now[:, 4] = np.where(random.random(2_000) < 0.4, 10.0, now[:, 4])

    found = drift(reference_of(then, _names(then)), now, _names(then))

    assert [one.is_shifted for one in found] == [True] * KINDS
    assert all(one.ks > one.ks_by_chance and one.ks_p_value < 1e-6 for one in found[:4])
    assert found[4].missing_share_reference == pytest.approx(0.8, abs=0.05)


def test_a_feature_that_was_always_zero_and_no_longer_is_is_found():
    """A constant has one decile; what lies above and what lies below it are bins all the same."""
    then, above, below = np.zeros((1_000, 1)), np.zeros((1_000, 1)), np.zeros((1_000, 1))
    above[:200], below[:200] = 5.0, -5.0

    reference = reference_of(then, ["f"])

    assert drift(reference, above, ["f"])[0].is_shifted
    assert drift(reference, below, ["f"])[0].is_shifted
    assert drift(reference, then, ["f"])[0].psi == 0.0


def test_too_few_vectors_are_said_to_be_too_few():
    """Below 100 on either side there is no figure, only the missing shares."""
    X = np.arange(500.0)[:, None]
    few = np.array([[1.0], [np.nan]] * (MIN_VECTORS // 2 - 1))

    for reference, now in ((reference_of(few, ["f"]), X), (reference_of(X, ["f"]), few)):
        (one,) = drift(reference, now, ["f"])
        assert (one.psi, one.ks, one.is_shifted) == (None, None, False)
    assert missing_shares(few, ["f"]) == {"f": 0.5}


def test_psi_is_the_sum_over_deciles_of_the_reference():
    """Against the formula written out, for values without ties and some missing."""
    random = np.random.default_rng(6)
    then, now = random.normal(size=(900, 1)), random.normal(0.2, 1.1, size=(700, 1))
    then[:100], now[:50] = np.nan, np.nan
    edges = np.quantile(then[100:, 0], np.arange(1, 10) / 10, method="inverted_cdf")
    p = np.append(np.histogram(then[100:], np.r_[-np.inf, np.nextafter(edges, np.inf), np.inf])[0], 100) + 0.5
    q = np.append(np.histogram(now[50:], np.r_[-np.inf, np.nextafter(edges, np.inf), np.inf])[0], 50) + 0.5
    p, q = p / p.sum(), q / q.sum()

    (found,) = drift(reference_of(then, ["f"]), now, ["f"])

    assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-12)
    assert (found.missing_share, found.missing_share_reference) == (50 / 700, 100 / 900)


def test_many_zeros_are_one_bin():
    """70 % zeros hold six deciles: the bins are below 0, 0, and the deciles above it (by hand: 0, 2 and 4 left)."""
    then = np.r_[np.zeros(700), np.arange(1.0, 301)][:, None]
    now = np.r_[np.zeros(400), np.arange(1.0, 301), np.arange(1.0, 301)][:, None]
    p = np.array([700, 100, 100, 100]) + 0.5  # the missing and what is below 0 are empty on both sides
    q = np.array([400, 200, 200, 200]) + 0.5
    p, q = p / p.sum(), q / q.sum()

    (found,) = drift(reference_of(then, ["f"]), now, ["f"])

    assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-12)


def test_ks_is_scipys_within_the_grids_resolution():
    """Smooth values to 0.01, few-valued ones exactly; the p-value is Kolmogorov's."""
    random = np.random.default_rng(7)
    pairs = [
        (random.normal(size=3_000), random.normal(0.1, 1.2, 2_000)),
        (random.lognormal(8, 1, 3_000), random.lognormal(8.2, 1, 2_000)),
        (random.poisson(1.0, 3_000).astype(float), random.poisson(1.2, 2_000).astype(float)),
    ]
    for (then, now), within in zip(pairs, (0.01, 0.01, 1e-12), strict=True):
        expected = stats.ks_2samp(then, now, method="asymp")
        (found,) = drift(reference_of(then[:, None], ["f"]), now[:, None], ["f"])
        assert expected.statistic - within <= found.ks <= expected.statistic + 1e-12
        root = np.sqrt(len(then) * len(now) / (len(then) + len(now)))
        assert found.ks_p_value == pytest.approx(stats.kstwobign.sf(root * found.ks), rel=1e-9)
        assert found.ks_by_chance == pytest.approx(stats.kstwobign.isf(0.001) / root, rel=1e-9)


def test_a_reference_survives_json_and_names_what_it_lacks():
    """Written and read back it tells the same drift; a feature it has not is an error."""
    random = np.random.default_rng(8)
    then, now = _population(random, 500), _population(random, 400)
    reference = reference_of(then, _names(then))

    again = Reference.from_json(json.loads(json.dumps(reference.as_json(), allow_nan=False)))

    assert again == reference
    assert drift(again, now, _names(now)) == drift(reference, now, _names(now))
    with pytest.raises(LookupError, match="'other'"):
        drift(reference, now[:, :1], ["other"])


def test_a_feature_without_any_value_is_compared_by_its_missing_share():
    """All missing then, a fifth there now; and the other way round."""
    missing, there = np.full((1_000, 1), np.nan), np.full((1_000, 1), np.nan)
    there[:200] = 1.0

    (came,) = drift(reference_of(missing, ["f"]), there, ["f"])
    (went,) = drift(reference_of(there, ["f"]), missing, ["f"])

    assert came.is_shifted
    assert went.is_shifted
    assert came.ks is None


# --- Replay ------------------------------------------------------------------------------------------------------


def _events(random: np.random.Generator, batch: int, received_at: int) -> list[NewEvent]:
    kinds = (ORDER_COMPLETED, PAGE, EMAIL_SENT, EMAIL_CLICKED, IDENTIFY, "Sofa Tested")
    return [
        NewEvent(
            int(random.integers(1, 31)),
            kinds[int(random.integers(len(kinds)))],
            int(received_at - random.integers(0, SPAN // 3)),
            f"{batch}-{n if n % 10 else 0}",  # every tenth is sent again under an id that is known
            "user:1",
            ref=str(random.integers(0, 12)),
            value_minor=int(random.integers(0, 90_000)),
            human_ppm=int(random.integers(0, 1_000_001)),
            properties={"category": "Shoes", "plan": str(random.integers(3))},
        )
        for n in range(60)
    ]


@pytest.fixture
def served(any_database: Database, tmp_path: Path) -> tuple[Database, Lake, ServedVectors]:
    """Thirty contacts read between appends of late, repeated and imported events; the lake synced at the end."""
    random = np.random.default_rng(7)
    lake = Lake(str(tmp_path / "lake"), buckets=8)
    found: list[tuple[int, int, int, str, bytes]] = []
    for batch in range(12):
        received_at = START + (batch + 1) * SPAN // 12
        with any_database.writing() as session:
            append(session, _events(random, batch, received_at), received_at=received_at, imported=batch % 4 == 2)
        for as_of in (received_at, received_at - SPAN // 20):
            keys = random.permutation(32)[:9].tolist()
            for views in (DEFAULT_VIEWS, SEND_HOUR_VIEWS):
                with any_database.reading() as session:
                    given = served_features(session, keys, from_micros(as_of), views)
                found += [
                    (key, as_of, given.seq, views.version, X.tobytes()) for key, X in zip(keys, given.X, strict=True)
                ]
        if batch == 5:
            with any_database.reading() as session:
                lake.sync(session)
    with any_database.reading() as session:
        lake.sync(session)
    columns = list(zip(*found, strict=True))
    arrays = [np.array(column, dtype=np.int64) for column in columns[:3]]
    return any_database, lake, ServedVectors(*arrays, version=columns[3], vector=columns[4])


def test_served_vectors_replay_to_the_bit(served: tuple[Database, Lake, ServedVectors]):
    """Whatever came in between, also imported history that was known earlier than it came: no mismatch."""
    _, lake, vectors = served

    found = replay(lake, vectors, BY_VERSION)

    assert (found.compared, found.mismatched, found.by_feature, found.skipped) == (len(vectors), 0, {}, {})
    assert found == replay(lake, vectors, BY_VERSION, n_jobs=2)
    # The place of the log matters: with the whole log instead of what each vector saw, imports change the past.
    late = replace(vectors, seq=np.full(len(vectors), lake.watermark))
    assert replay(lake, late, BY_VERSION).mismatched > 0


def test_a_corrupted_vector_is_found_with_its_feature(served: tuple[Database, Lake, ServedVectors]):
    """One bit of one value, a value that went missing, a vector cut short: each is counted, and named."""
    _, lake, vectors = served
    altered = list(vectors.vector)
    of_default = [row for row, version in enumerate(vectors.version) if version == DEFAULT_VIEWS.version]
    names = DEFAULT_VIEWS.names
    flipped = bytearray(altered[of_default[3]])
    flipped[8 * names.index("orders_ever")] ^= 1
    lost = np.frombuffer(altered[of_default[5]], dtype="<f8").copy()
    lost[names.index("orders_30d")] = np.nan
    altered[of_default[3]], altered[of_default[5]] = bytes(flipped), lost.tobytes()
    altered[of_default[7]] = altered[of_default[7]][:-8]

    found = replay(lake, replace(vectors, vector=altered), BY_VERSION)

    assert found.mismatched == 3
    assert found.by_feature == {"(length)": 1, "orders_30d": 1, "orders_ever": 1}
    assert {one.feature for one in found.examples} == {"orders_30d", "orders_ever"}
    assert found.rate == 3 / len(vectors)


def test_what_cannot_be_compared_is_left_out_and_counted(served: tuple[Database, Lake, ServedVectors]):
    """Erased contacts, versions nobody knows, places that the lake has not reached: in this order, each once."""
    _, lake, vectors = served
    version = list(vectors.version)
    version[:10] = ["0123456789abcdef"] * 10
    seq = vectors.seq.copy()
    seq[:20] = lake.watermark + 1
    gone = int(vectors.contact_key[-1])
    erased = vectors.contact_key == gone

    found = replay(lake, replace(vectors, version=version, seq=seq), BY_VERSION, erased={gone})

    assert found.skipped == {
        "of erased contacts": erased.sum(),
        "of unknown view-set versions": (~erased[:10]).sum(),
        "beyond the lake": (~erased[10:20]).sum(),
    }
    assert found.compared == len(vectors) - sum(found.skipped.values())
    assert found.mismatched == 0


def test_a_replay_of_many_events_goes_in_portions(served: tuple[Database, Lake, ServedVectors], monkeypatch):
    """The bound on events in memory changes nothing but the number of sweeps."""
    _, lake, vectors = served
    monkeypatch.setattr("features.checks.REPLAY_EVENTS", 50)

    assert replay(lake, vectors, BY_VERSION) == Replay(len(vectors), 0, {}, {})


def test_nothing_served_is_no_rate(tmp_path: Path):
    """An empty log of vectors has neither rate nor interval."""
    none = np.empty(0, dtype=np.int64)

    found = replay(Lake(str(tmp_path / "lake")), ServedVectors(none, none, none, [], []), BY_VERSION)

    assert (found.compared, found.rate, found.interval()) == (0, None, None)


@pytest.mark.parametrize(("n", "k"), [(10_000, 0), (50, 50), (1_000, 7), (1, 0)])
def test_the_interval_is_clopper_and_pearsons(n: int, k: int):
    """As scipy's exact binomial test has it."""
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")

    assert Replay(n, k, {}, {}).interval() == pytest.approx((expected.low, expected.high), abs=1e-12)


# --- Freshness and samples ---------------------------------------------------------------------------------------


def test_freshness_tells_since_when_the_lake_is_behind(any_database: Database, tmp_path: Path):
    """The oldest event that waits, whatever was imported after it; a clock that ran ahead; another log's lake."""
    lake = Lake(str(tmp_path / "lake"), buckets=4)
    now = START + DAY_MICROS

    def add(message_id: str, received_at: int, *, imported: bool = False) -> None:
        event = NewEvent(1, PAGE, received_at - 50 * DAY_MICROS, message_id, "user:1")
        with any_database.writing() as session:
            append(session, [event], received_at=received_at, imported=imported)

    with any_database.reading() as session:
        empty = freshness(session, lake, now=now)
    assert (empty.events_behind, empty.seconds_behind, empty.newest_event_age_seconds) == (0, 0.0, None)
    add("imported", now - 3_000_000, imported=True)
    with any_database.reading() as session:
        assert freshness(session, lake, now=now).seconds_behind is None
    add("first", now - 90_000_000)
    add("second", now - 60_000_000)
    with any_database.reading() as session:
        behind = freshness(session, lake, now=now)
        lake.sync(session)
        synced = freshness(session, lake, now=now - 90_000_000)

    assert (behind.head, behind.watermark, behind.events_behind) == (3, 0, 3)
    assert (behind.seconds_behind, behind.newest_event_age_seconds, behind.clock_ahead_seconds) == (90.0, 60.0, 0.0)
    assert (synced.events_behind, synced.seconds_behind, synced.clock_ahead_seconds) == (0, 0.0, 30.0)


def test_a_sample_is_of_the_contacts_known_and_asked_for(served: tuple[Database, Lake, ServedVectors]):
    """All of them where they are few, as the online path gives them; a fixed part where they are many."""
    database, lake, _ = served
    as_of = START + SPAN // 2
    column = DEFAULT_VIEWS.names.index("orders_ever")
    with database.reading() as session:
        everyone = served_features(session, range(1, 31), from_micros(as_of), DEFAULT_VIEWS).X

    found = sample_vectors(lake, DEFAULT_VIEWS, as_of, lambda X: X[:, column] > 0)
    some = sample_vectors(lake, DEFAULT_VIEWS, as_of, lambda X: X[:, column] > 0, most=7)

    assert {X.tobytes() for X in found} == {X.tobytes() for X in everyone if X[column] > 0}
    assert len(some) == 7
    assert {X.tobytes() for X in some} <= {X.tobytes() for X in found}
