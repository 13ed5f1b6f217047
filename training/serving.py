"""Which model answers now: versions loaded from plain files, checked, swapped in the background; no pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from features.checks import Reference, reference_of
from features.views import VIEW_SETS, ViewSet
from training.calibration import Calibration
from training.estimators import Estimator
from training.explain import Reason, reasons
from training.fallback import fallen_back
from training.order_curve import OrderCurve
from training.rungs import ByHistory, load_estimator
from training.send_hour import SendHourModel

Array = NDArray[np.float64]
logger = logging.getLogger(__name__)

FORMAT = 1
#: Rows kept beside a model with the outputs it gave when it was written, and how far a loaded model may be from them.
GOLDEN_ROWS = 8
GOLDEN_TOLERANCE = 1e-9
MODEL_FILE, VIEWS_FILE, CALIBRATION_FILE = "model.json", "view_set.json", "calibration.json"
GOLDEN_FILE, CHECKSUMS_FILE, REFERENCE_FILE = "golden.json", "checksums.json", "reference.json"


#: Days over which the chance of an order is told beside a model's own horizon.
HORIZONS = (7, 14, 30, 90)


class BrokenModel(ValueError):
    """A model's folder cannot be trusted or does not fit this installation."""


@dataclass(frozen=True)
class Population:
    """Whom a model may be asked about, as bounds on columns of the vector; a missing value meets no bound.

    A contact belongs to it when every bound of at least one alternative holds.
    """

    #: Alternatives, each a list of (column, least, most); None is no bound.
    alternatives: tuple[tuple[tuple[str, float | None, float | None], ...], ...]
    #: What the population is, for people; said to those outside it.
    says: str

    def contains(self, X: Array, names: tuple[str, ...]) -> NDArray[np.bool_]:
        """Mask of the vectors of shape (n, p) that belong to the population."""
        column = {name: i for i, name in enumerate(names)}
        inside = np.zeros(len(X), dtype=bool)
        for bounds in self.alternatives:
            meets = np.ones(len(X), dtype=bool)
            for name, least, most in bounds:
                values = X[:, column[name]]
                meets &= np.isfinite(values)
                meets &= values >= (-np.inf if least is None else least)
                meets &= values <= (np.inf if most is None else most)
            inside |= meets
        return inside

    def within(self, other: Population) -> Population:
        """Those of this population who belong to ``other`` too."""
        both = tuple((*own, *theirs) for own in self.alternatives for theirs in other.alternatives)
        return Population(both, f"{self.says}; of them {other.says}")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Population:
        """The population that ``dataclasses.asdict`` turned into ``content``, perhaps by way of JSON."""
        alternatives = (tuple((n, least, most) for n, least, most in bounds) for bounds in content["alternatives"])
        return cls(tuple(alternatives), content["says"])


#: Everyone there is a vector of.
EVERYONE = Population(alternatives=((),), says="every contact")


@dataclass(frozen=True)
class ModelCard:
    """What a version says of itself: the content of ``model.json``."""

    name: str
    kind: Literal["outcome", "send_hour"]
    rung: str
    #: Why this rung serves.
    reason: str
    #: Name and version of the view set.
    view_set: str
    view_set_version: str
    #: Days the outcome is awaited; None for ``send_hour``.
    horizon_days: int | None
    #: What a probability of 1 would mean.
    outcome: str
    #: Instant up to which the log was used, ISO 8601.
    as_of: str
    created_at: str
    metrics: dict[str, float | None]
    population: Population = EVERYONE
    version: int = 0
    format: int = FORMAT
    #: Whether the outcome is that the event happens, or that it does not.
    happens: bool = True
    #: Days of the log-odds that the estimator gives, where every horizon follows from them; None where it is the own.
    anchor_days: int | None = None
    #: Rung and reason for never-buyers, where they are answered apart.
    leads_rung: str | None = None
    leads_reason: str | None = None
    #: The `features.labels.Outcome` as ``dataclasses.asdict`` gives it, so that scores can be judged later.
    asked: dict[str, Any] | None = None


class ServedModel(Protocol):
    """A loaded version, as the service sees it."""

    @property
    def card(self) -> ModelCard:
        """What the version says of itself."""
        ...

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def version(self) -> int:
        """Version in the registry."""
        ...

    @property
    def rung(self) -> str:
        """Rung of the ladder that serves."""
        ...

    @property
    def view_set(self) -> ViewSet:
        """Views whose vectors it takes, by name and version."""
        ...

    @property
    def reference(self) -> Reference | None:
        """What its population looked like when it was trained; None for versions that did not keep it yet."""
        ...

    def predict(self, X: Array) -> Array:
        """Probabilities, shape (n,), of vectors of shape (n, p)."""
        ...

    def contains(self, X: Array) -> NDArray[np.bool_]:
        """Mask of the contacts that the model may be asked about."""
        ...

    def reasons(self, X: Array) -> list[list[Reason]]:
        """Up to three reasons up and three down for each row."""
        ...


@dataclass(frozen=True)
class _Served:
    card: ModelCard
    view_set: ViewSet

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.card.name

    @property
    def version(self) -> int:
        """Version in the registry; 0 before it was registered."""
        return self.card.version

    @property
    def rung(self) -> str:
        """Rung of the ladder that serves."""
        return self.card.rung

    def contains(self, X: Array) -> NDArray[np.bool_]:
        """Mask of the contacts that the model may be asked about."""
        return self.card.population.contains(np.asarray(X, dtype=np.float64), self.view_set.names)

    def _checked(self, X: Array) -> Array:
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[1] != len(self.view_set.names):
            raise ValueError(f"vectors have shape {X.shape}; {self.name!r} takes (n, {len(self.view_set.names)})")
        return X


@dataclass(frozen=True)
class ServedOutcome(_Served):
    """A model of a yes-or-no outcome: churn, conversion."""

    estimator: Estimator
    calibration: Calibration
    reference: Reference | None = None
    #: Behind outcomes about orders: from the estimator's log-odds of an order within ``anchor_days`` to any horizon.
    orders: OrderCurve | None = None

    def predict(self, X: Array) -> Array:
        """Probability of the outcome, shape (n,)."""
        X = self._checked(X)
        log_odds = self.estimator.log_odds(X)
        if self.orders is None:
            return self.calibration.apply(log_odds)
        hazard = self.orders.hazard(X, log_odds, float(self.card.horizon_days or self.orders.anchor_days))
        return np.asarray(-np.expm1(-hazard) if self.card.happens else np.exp(-hazard))

    def rungs(self, X: Array) -> list[str]:
        """Which rung answers for each row."""
        X = self._checked(X)
        return self.estimator.rungs(X) if isinstance(self.estimator, ByHistory) else [self.rung] * len(X)

    def rung_reasons(self, X: Array) -> list[str]:
        """Why that rung, for each row."""
        X = self._checked(X)
        if not isinstance(self.estimator, ByHistory) or self.card.leads_reason is None:
            return [self.card.reason] * len(X)
        return [self.card.reason if bought else self.card.leads_reason for bought in self.estimator.has_bought(X)]

    def outlook(self, X: Array, horizons: Sequence[int] = HORIZONS) -> list[dict[str, Any]] | None:
        """What each contact is expected to order; None for outcomes that are not about orders.

        Returns
        -------
        list of dict
            ``order_within_days`` (probability by horizon, rising with it), ``next_order_days`` (``median`` and the
            ends of the 80 % interval, ``low`` and ``high``; None where later than ten years, or never),
            ``expected_orders`` (days with an order) and ``expected_value_minor`` within the model's horizon,
            ``expected_value_365d_minor`` (None where order values are not known).
        """
        if self.orders is None:
            return None
        X = self._checked(X)
        own = int(self.card.horizon_days or self.orders.anchor_days)
        found = self.orders.outlook(X, self.estimator.log_odds(X), sorted({*horizons, own}), own, 365)
        amounts = {
            "expected_orders": found.orders,
            "expected_value_minor": found.value_minor,
            "expected_value_365d_minor": found.farther_value_minor,
        }

        def told(value: float) -> float | None:
            return round(value, 4) if math.isfinite(value) else None

        return [
            {
                "order_within_days": {str(h): float(p[i]) for h, p in found.within.items()},
                "next_order_days": {name: told(float(days[i])) for name, days in found.next_order_days.items()},
                **{name: told(float(amount[i])) for name, amount in amounts.items()},
            }
            for i in range(len(X))
        ]

    def reasons(self, X: Array) -> list[list[Reason]]:
        """Up to three reasons up and three down for each row."""
        return reasons(self.estimator, self._checked(X), self.view_set, 1.0 if self.card.happens else -1.0)


@dataclass(frozen=True)
class ServedHours(_Served):
    """The send-hour model."""

    model: SendHourModel
    reference: Reference | None = None

    @property
    def hour_effect(self) -> bool:
        """False where hours do not provably differ: no hour is then called best."""
        return self.model.hour_effect

    def predict_hours(self, X: Array) -> Array:
        """P(human click or open within 24 h | sent at local hour h), shape (n, 24)."""
        return self.model.predict_hours(self._checked(X))

    def predict(self, X: Array) -> Array:
        """The same at each contact's best hour, shape (n,)."""
        return self.model.predict(self._checked(X))

    def levels(self, X: Array) -> list[str]:
        """Whose habits each curve is made of: ``contact``, ``persona``, ``segment``, ``global`` or ``default``."""
        return self.model.levels(self._checked(X))

    def reasons(self, X: Array) -> list[list[Reason]]:
        """No reasons: the curve itself is what there is to show."""
        return [[] for _ in range(len(X))]


def _outputs(model: ServedModel, X: Array) -> Array:
    return model.predict_hours(X) if isinstance(model, ServedHours) else model.predict(X)


def write_model(
    folder: Path,
    card: ModelCard,
    views: ViewSet,
    learned: Estimator | SendHourModel,
    calibration: Calibration | None,
    X: Array,
    population: Array | None = None,
    orders: OrderCurve | None = None,
) -> None:
    """Everything that serves a version, as plain files in ``folder``.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    learned : Estimator or SendHourModel
        What was fitted.
    calibration : Calibration, optional
        None for ``send_hour``.
    X : ndarray, shape (n, p)
        Vectors of which a few become the golden rows.
    population : ndarray, shape (m, p), optional
        Vectors of the model's population on the day of training, from which later drift is told; default ``X``.
    orders : OrderCurve, optional
        For outcomes about orders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    learned.save(folder)
    if orders is not None:
        orders.save(folder)
    (folder / MODEL_FILE).write_text(_dumped(asdict(card)))
    (folder / VIEWS_FILE).write_text(
        _dumped(
            {
                "name": views.name,
                "version": views.version,
                "definition": views.definition(),
                "columns": views.describe(),
            }
        )
    )
    if calibration is not None:
        (folder / CALIBRATION_FILE).write_text(_dumped(asdict(calibration)))
    reference = reference_of(X if population is None else population, views.names)
    (folder / REFERENCE_FILE).write_text(json.dumps(reference.as_json(), allow_nan=False))
    # Each column from another contact: what stays in the folder after an erasure is nobody's vector.
    picked = np.linspace(0, len(X) - 1, min(GOLDEN_ROWS, len(X))).astype(int)
    golden = np.asarray(X, dtype=np.float64)[(picked[:, None] + np.arange(X.shape[1])) % len(X), np.arange(X.shape[1])]
    outputs = _outputs(_assemble(folder, card, views), golden)
    rows = [[value if math.isfinite(value) else None for value in row] for row in golden.tolist()]
    (folder / GOLDEN_FILE).write_text(_dumped({"X": rows, "outputs": outputs.tolist()}))
    _write_checksums(folder)


def stamp_version(folder: Path, version: int) -> None:
    """Write the registry's version into ``model.json`` and renew the checksums."""
    card = json.loads((folder / MODEL_FILE).read_text())
    (folder / MODEL_FILE).write_text(_dumped({**card, "version": version}))
    _write_checksums(folder)


def read_card(folder: Path) -> ModelCard:
    """What the version in ``folder`` says of itself; nothing is verified."""
    content = json.loads((Path(folder) / MODEL_FILE).read_text())
    return ModelCard(**{**content, "population": Population.from_dict(content["population"])})


def load_model(folder: Path) -> ServedOutcome | ServedHours:
    """The model in ``folder``, after its checksums, its view set and its golden rows were found right.

    It brings the view set that it was trained on along: what ``features/views.py`` declares by now does not matter.

    Raises
    ------
    BrokenModel
        If a file is missing, was altered, the view set cannot be evaluated any more, or the model no longer gives the
        outputs it gave when it was written.
    """
    folder = Path(folder)
    try:
        checksums: dict[str, str] = json.loads((folder / CHECKSUMS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{folder} is no model folder ({error}); train the model again") from error
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise BrokenModel(f"{path} is missing; restore it or train the model again")
        if _sha256(path) != expected:
            raise BrokenModel(
                f"{path} was altered: its SHA-256 is not the one in {CHECKSUMS_FILE}; restore it or train again"
            )
    if not {MODEL_FILE, VIEWS_FILE, GOLDEN_FILE} <= checksums.keys():
        raise BrokenModel(
            f"{folder / CHECKSUMS_FILE} does not vouch for {MODEL_FILE}, {VIEWS_FILE} and {GOLDEN_FILE}; train again"
        )
    card = read_card(folder)
    if card.format != FORMAT:
        raise BrokenModel(
            f"{folder} is written in format {card.format}, this version reads format {FORMAT}; train the model again"
        )
    views = _view_set(folder, card)
    model = _assemble(folder, card, views)
    golden = json.loads((folder / GOLDEN_FILE).read_text())
    X = np.array([[math.nan if value is None else value for value in row] for row in golden["X"]], dtype=np.float64)
    distance = np.abs(_outputs(model, X) - np.array(golden["outputs"], dtype=np.float64)).max(initial=0.0)
    if not distance <= GOLDEN_TOLERANCE:
        raise BrokenModel(
            f"{card.name} {card.version} gives its golden rows other outputs than when it was written (by "
            f"{distance:.2g}, at most {GOLDEN_TOLERANCE:g} is allowed); train it again with this machine's libraries"
        )
    return model


def _view_set(folder: Path, card: ModelCard) -> ViewSet:
    """The view set that the model was trained on, made from its definition; the declared one where it is the same."""
    said = f"{card.name} {card.version} was trained on view set {card.view_set!r} version {card.view_set_version}"
    remedy = f"run `kairos train {card.name}` or serve another version (`kairos models promote`)"
    declared = VIEW_SETS.get(card.view_set)
    is_declared = declared is not None and declared.version == card.view_set_version
    definition = json.loads((folder / VIEWS_FILE).read_text()).get("definition")
    if definition is None:  # versions of before the definition was kept
        if declared is not None and is_declared:
            return declared
        other = "none of that name" if declared is None else f"version {declared.version}"
        raise BrokenModel(f"{said}, does not keep its definition, and this installation declares {other}; {remedy}")
    try:
        views = ViewSet.from_definition(definition)
    except ValueError as error:
        raise BrokenModel(f"{said}, which this program cannot evaluate: {error}; {remedy}") from None
    if (views.name, views.version) != (card.view_set, card.view_set_version):
        raise BrokenModel(f"{said}, but {folder / VIEWS_FILE} defines {views.name!r} version {views.version}; {remedy}")
    return declared if declared is not None and is_declared else views


def _assemble(folder: Path, card: ModelCard, views: ViewSet) -> ServedOutcome | ServedHours:
    if card.kind == "send_hour":
        return ServedHours(card, views, SendHourModel.load(folder), _reference(folder))
    calibration = Calibration(**json.loads((folder / CALIBRATION_FILE).read_text()))
    return ServedOutcome(card, views, load_estimator(folder), calibration, _reference(folder), OrderCurve.load(folder))


def _reference(folder: Path) -> Reference | None:
    path = folder / REFERENCE_FILE
    return Reference.from_json(json.loads(path.read_text())) if path.is_file() else None


def _dumped(content: object) -> str:
    return json.dumps(finite(content), indent=1, sort_keys=True, allow_nan=False)


def finite(content: Any) -> Any:
    """The same with None for NaN and infinities, which JSON has no word for."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_checksums(folder: Path) -> None:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted(name for name in files if name != CHECKSUMS_FILE)
    (folder / CHECKSUMS_FILE).write_text(_dumped({name: _sha256(folder / name) for name in names}))


@dataclass(frozen=True)
class Wanted:
    """Which version of a model should serve, and what to do if it cannot."""

    version: int
    folder: str
    #: What served before: it answers while the files of ``version`` are missing or altered.
    previous_version: int | None = None
    previous_folder: str | None = None
    #: Why the version has to answer with its lower rung; None while it need not.
    fell_back: str | None = None


@dataclass
class Serving:
    """The champions in memory, by name.

    ``refresh`` compares what is loaded with what should serve and loads the difference in a background thread; a
    request keeps the model it took. A version that does not load leaves the one before it in place (at the start of a
    process: the previous one is loaded) and is tried again only when the wanted version changes or a minute has passed.
    """

    retry_seconds: float = 60.0
    _models: dict[str, ServedOutcome | ServedHours] = field(default_factory=dict)
    _places: dict[str, Wanted] = field(default_factory=dict)
    _failed: dict[str, tuple[Wanted, datetime]] = field(default_factory=dict)
    _why: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _loading: threading.Thread | None = None

    def get(self, name: str) -> ServedOutcome | ServedHours | None:
        """The loaded champion of ``name``; None if there is none."""
        return self._models.get(name)

    @property
    def versions(self) -> dict[str, int]:
        """Loaded version of each model."""
        return {name: model.version for name, model in dict(self._models).items()}

    @property
    def why(self) -> dict[str, str]:
        """By name, why something else answers than the wanted version as it was trained; empty if all is well."""
        return dict(self._why)

    def refresh(
        self, wanted: Mapping[str, Wanted | tuple[int, str | Path]], *, now: datetime, wait: bool = False
    ) -> None:
        """Bring what is loaded to ``wanted``: for each name its version and folder.

        Parameters
        ----------
        wanted : mapping
            A name that is missing here is dropped.
        now : datetime
            For the pause before a failed version is tried again.
        wait : bool
            Return when all is loaded, instead of at once.
        """
        places = {
            name: place if isinstance(place, Wanted) else Wanted(int(place[0]), str(place[1]))
            for name, place in wanted.items()
        }
        with self._lock:
            for name in {*self._models, *self._why} - places.keys():
                for known in (self._models, self._places, self._why):
                    known.pop(name, None)
            due = {name: place for name, place in places.items() if self._is_due(name, place, now)}
            thread = self._loading
            if due and (thread is None or not thread.is_alive()):
                thread = threading.Thread(target=self._load, args=(due, now), name="model-reload", daemon=True)
                self._loading = thread
                thread.start()
        if wait and thread is not None:
            thread.join()

    def _is_due(self, name: str, place: Wanted, now: datetime) -> bool:
        if self._places.get(name) == place:
            return False
        failed = self._failed.get(name)
        return failed is None or failed[0] != place or (now - failed[1]).total_seconds() >= self.retry_seconds

    def _load(self, due: Mapping[str, Wanted], now: datetime) -> None:
        for name, place in due.items():
            try:
                model = _load_as(name, place.version, place.folder)
            except Exception as error:  # whatever is wrong with the new files, the old model goes on serving
                self._keep_going(name, place, now, error)
                continue
            if place.fell_back is not None and isinstance(model, ServedOutcome):
                model = fallen_back(model, place.fell_back)
            with self._lock:
                self._models[name] = model
                self._places[name] = place
                self._failed.pop(name, None)
                self._why.pop(name, None)
                if place.fell_back is not None:
                    self._why[name] = place.fell_back
            logger.info(
                "%s version %d serves (%s)",
                name,
                place.version,
                model.rung,
                extra={"action": "model_loaded", "model": name, "version": place.version},
            )

    def _keep_going(self, name: str, place: Wanted, now: datetime, error: Exception) -> None:
        """What is loaded stays; at the start of a process, when nothing is, the previous version is loaded."""
        kept = self._models.get(name)
        if kept is None and place.previous_version is not None and place.previous_folder is not None:
            try:
                kept = _load_as(name, place.previous_version, place.previous_folder)
            except Exception as its_error:
                error = BrokenModel(f"{error}; nor does version {place.previous_version}: {its_error}")
        said = "none serves" if kept is None else f"version {kept.version} goes on serving"
        why = f"version {place.version} does not load, {said}: {error}"
        logger.error("%s %s", name, why, exc_info=error,
                     extra={"action": "model_not_loaded", "model": name, "version": place.version})  # fmt: skip
        with self._lock:
            if kept is not None:
                self._models[name] = kept
            self._failed[name] = (place, now)
            self._why[name] = why


def _load_as(name: str, version: int, folder: str) -> ServedOutcome | ServedHours:
    model = load_model(Path(folder))
    if (model.name, model.version) != (name, version):
        raise BrokenModel(f"{folder} holds {model.name} {model.version}, not {name} {version}; promote it again")
    return model
