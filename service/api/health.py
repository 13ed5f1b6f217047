"""Is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.installation import Installation, installation
from service.api.problems import RETRY_SECONDS
from service.checks import check_database, check_lake

router = APIRouter(tags=["operations"])


@router.get("/healthz")
def alive() -> dict[str, str]:
    """The process answers. Asks nothing of anybody else."""
    return {"status": "alive"}


@router.get("/readyz")
def ready(here: Installation = Depends(installation)) -> JSONResponse:
    """Whether the database answers with the tables of this version and the lake can be read; 503 if not."""
    checks = [check_database(here.database), check_lake(here.settings)]
    is_ready = all(check.ok for check in checks)
    body = {
        "status": "ready" if is_ready else "not ready",
        "checks": {check.name: "ok" if check.ok else check.says for check in checks},
        "models": here.serving.versions,
        "models_why": here.serving.why,
    }
    return JSONResponse(body, 200) if is_ready else JSONResponse(body, 503, {"Retry-After": str(RETRY_SECONDS)})


@router.get("/metrics", response_class=Response)
def metrics(here: Installation = Depends(installation)) -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(here.metrics.registry), media_type=CONTENT_TYPE_LATEST)
