"""The model that `mlflow models serve` runs for the benchmark: our own version's folder, behind MLflow's interface.

MLflow imports this file ("models from code"), so that no pickle is involved. Its server is handed the finished vector;
ours reads it from the log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from training.serving import load_model


class OurVersion(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A version's plain files as a `pyfunc`."""

    def load_context(self, context: Any) -> None:
        """Load what ``artifacts['folder']`` names."""
        self.model = load_model(Path(context.artifacts["folder"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Probabilities of the rows' vectors."""
        return self.model.predict(model_input.to_numpy(dtype=float))


mlflow.models.set_model(OurVersion())
