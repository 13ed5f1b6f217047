"""Laws of the engine: a cluster gives the bits that one machine gives, and says so when it cannot."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.checks import ServedVectors, replay
from features.engine import EngineError, run, use_engine
from features.events import DAY_MICROS, NewEvent, append
from features.labels import CONVERSION
from features.lake import Lake, LakeError
from features.offline import historical_features, map_buckets
from features.tables import from_micros
from features.views import DEFAULT_VIEWS
from features.vocabulary import EMAIL_CLICKED, EMAIL_SENT, ORDER_COMPLETED, PAGE
from service.database import Database
from training import conversion
from training.calibration import Calibration
from training.datasets import Definition, training_set
from training.estimators import SmallLightGBM
from training.scoring import score
from training.serving import ModelCard, ServedModel, load_model, write_model

START = 1_760_000_000_000_000
SPAN = 200 * DAY_MICROS
HERE = str(Path(__file__).resolve().parents[2])
#: Of the trained model: who orders within 30 days.
ASKED = Definition(CONVERSION, conversion.POPULATION, 30, "an order")

#: Ray's own code is not ours to keep free of warnings.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{name}") for name in ("ResourceWarning", "DeprecationWarning", "FutureWarning")
]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed; run: pip install 'kairos-mail[ray]'"
)


@pytest.fixture(autouse=True)
def local_afterwards() -> Iterator[None]:
    yield
    use_engine("local")


@pytest.fixture
def lake(database: Database, tmp_path: Path) -> Lake:
    """20,000 random events of 400 contacts in 8 buckets, a third of them late by up to a month."""
    random = np.random.default_rng(5)
    lake = Lake(str(tmp_path / "lake"), buckets=8)
    kinds = (ORDER_COMPLETED, PAGE, PAGE, EMAIL_SENT, EMAIL_CLICKED)
    for batch in range(20):
        received_at = START + (batch + 1) * SPAN // 20
        events = [
            NewEvent(
                int(random.integers(1, 401)),
                kinds[int(random.integers(len(kinds)))],
                int(received_at - random.integers(0, SPAN // 20 if n % 3 else SPAN // 6)),
                f"{batch}-{n}",
                "user:1",
                ref=str(random.integers(0, 500)),
                value_minor=int(random.integers(0, 90_000)),
                human_ppm=900_000,
            )
            for n in range(1000)
        ]
        with database.writing() as session:
            append(session, events, received_at=received_at)
        with database.reading() as session:
            lake.sync(session)
    return lake


@pytest.fixture
def spine() -> pd.DataFrame:
    """Four instants of every contact, and of some that have no event, in no order."""
    instants = [START + SPAN * part // 4 for part in (1, 2, 3, 4)]
    rows = [(key, at) for at in instants for key in range(410)]
    return pd.DataFrame(rows, columns=["contact_key", "as_of"]).sample(frac=1.0, random_state=1)


@pytest.fixture
def cluster() -> Iterator[str]:
    """Address of a Ray cluster of two nodes with one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="kairos-ray-")  # sockets lie in it, whose paths must be short
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder, "object_store_memory": 2**27},
    )
    nodes.add_node(num_cpus=1, object_store_memory=2**27)
    nodes.wait_for_nodes()
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _node_of(lake: Lake, bucket: int) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _trained(lake: Lake, folder: Path) -> ServedModel:
    instants = [START + SPAN * part // 10 for part in (4, 6, 8)]
    data = training_set(lake, DEFAULT_VIEWS, ASKED, instants)
    card = ModelCard(
        "conversion", "outcome", "lightgbm", "", "default", DEFAULT_VIEWS.version, 30, "", "", "", {}, ASKED.population
    )
    write_model(folder, card, DEFAULT_VIEWS, SmallLightGBM.fit(data.X, data.y), Calibration(), data.X)
    return load_model(folder)


@needs_ray
def test_two_nodes_give_the_bits_of_one_machine(
    database: Database, lake: Lake, spine: pd.DataFrame, tmp_path: Path, request: pytest.FixtureRequest
):
    """Vectors, a training set and scores through Ray, on both nodes; a lake that the nodes do not see is refused."""
    model = _trained(lake, tmp_path / "model")
    instants = [START + SPAN * part // 5 for part in (1, 2, 3, 4)]
    now = from_micros(START + SPAN)
    vectors = historical_features(lake, spine, DEFAULT_VIEWS)
    learned = training_set(lake, DEFAULT_VIEWS, ASKED, instants)
    scores = score(lake, model, now)

    use_engine("ray", request.getfixturevalue("cluster"))

    assert len(set(map_buckets(_node_of, lake))) == 2  # also with n_jobs left at 1
    elsewhere = historical_features(lake, spine, DEFAULT_VIEWS)
    assert elsewhere.X.tobytes() == vectors.X.tobytes()
    assert elsewhere.contact_key.tobytes() == vectors.contact_key.tobytes()
    assert elsewhere.watermark == vectors.watermark == lake.watermark
    taught = training_set(lake, DEFAULT_VIEWS, ASKED, instants)
    assert taught.manifest == learned.manifest
    assert taught.X.tobytes() == learned.X.tobytes()
    assert taught.y.tobytes() == learned.y.tobytes()
    again = score(lake, model, now)
    assert again.probability.tobytes() == scores.probability.tobytes()
    assert again.contact_key.tobytes() == scores.contact_key.tobytes()
    assert len(np.unique(again.probability)) > 100

    unseen = Lake("memory://kairos-engine-test", buckets=8)  # of this process alone
    with database.reading() as session:
        unseen.sync(session)
    with pytest.raises(LakeError, match=r"reaches to place 0 of the log, .* 20000: .*KAIROS_LAKE_URL"):
        historical_features(unseen, spine, DEFAULT_VIEWS)
    one = [np.array([value]) for value in (vectors.contact_key[0], vectors.as_of[0], unseen.watermark)]
    served = ServedVectors(*one, [DEFAULT_VIEWS.version], [vectors.X[0].tobytes()])
    with pytest.raises(LakeError, match=r"reaches to place 0 of the log, .* 20000: .*KAIROS_LAKE_URL"):
        replay(unseen, served, {DEFAULT_VIEWS.version: DEFAULT_VIEWS})


def test_an_engine_that_is_not_there_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    """An unknown name, and Ray where its extra is not installed; the engine in force stays."""
    with pytest.raises(EngineError, match="'dask' is no engine; set KAIROS_ENGINE to one of local, ray"):
        use_engine("dask")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray", None)  # how Python says that a module cannot be imported
    with pytest.raises(EngineError, match=r"pip install 'kairos-mail\[ray\]'"):
        use_engine("ray")

    assert list(run(divmod, [(7, 3), (9, 2)])) == [(2, 1), (4, 1)]


@needs_ray
def test_a_cluster_that_does_not_answer_is_named():
    """At once, and no cluster of this machine is taken in its place."""
    with pytest.raises(EngineError, match="'ray://head:10001' is no Ray cluster; set KAIROS_ENGINE_ADDRESS"):
        use_engine("ray", "ray://head:10001")
    use_engine("ray", "127.0.0.1:1")

    with pytest.raises(EngineError, match=r"no Ray cluster at 127.0.0.1:1: .*ray start --head.*KAIROS_ENGINE_ADDRESS"):
        list(run(divmod, [(7, 3)]))


def test_nothing_loads_ray_unless_it_was_chosen(tmp_path: Path):
    """The command line reads vectors' buckets without it, on this machine's threads."""
    program = (
        "import sys, tempfile\n"
        "from features.lake import Lake\n"
        "from features.offline import map_buckets\n"
        "import service.cli, training.scoring\n"
        "assert map_buckets(lambda lake, bucket: bucket, Lake(tempfile.mkdtemp(), 4), n_jobs=2) == [0, 1, 2, 3]\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'ray']\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": HERE})


def test_the_engine_of_the_settings_is_the_one_that_works(tmp_path: Path):
    """`kairos` hands KAIROS_ENGINE on: an engine that is missing is a sentence on standard error, not a trace."""
    env = {**os.environ, "PYTHONPATH": HERE, "KAIROS_HOME": str(tmp_path), "KAIROS_ENGINE": "ray"}
    program = "import sys; sys.modules['ray'] = None; from service.cli import main; main(['features', 'sync'])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=env)

    assert done.returncode == 1
    assert done.stderr.startswith("kairos: KAIROS_ENGINE is ray, which is not installed; run: pip install")
