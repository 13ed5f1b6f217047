"""The vector of a contact right now: its rows from the log, the same sweep as training."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from features.events import read_contacts
from features.tables import to_micros
from features.views import ViewSet


def online_features(
    session: Session,
    contact_keys: Sequence[int],
    as_of: datetime,
    views: ViewSet,
) -> npt.NDArray[np.float64]:
    """Vectors of these contacts at ``as_of``, from the events that the log holds and that were known then.

    Parameters
    ----------
    session : Session
        Its open transaction is what is seen of the log.
    contact_keys : sequence of int
        Repeats are fine; a key without events gets the null rules.
    as_of : datetime
        Aware; usually now.
    views : ViewSet

    Returns
    -------
    ndarray of float64, shape (n_contacts, n_columns)
        In the order of ``contact_keys``, columns as ``views.names``; bit for bit what `historical_features` gives for
        the same contact and instant once the lake has the same events.
    """
    from features.kernel import sweep  # numba: loaded where it is used

    keys = np.asarray(contact_keys, dtype=np.int64)
    events = read_contacts(session, contact_keys)
    return sweep(events, keys, np.full(len(keys), to_micros(as_of), dtype=np.int64), views)
