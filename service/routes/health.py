"""Liveness, readiness and metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import NotReady
from service.routes.dependencies import EngineDep
from service.routes.openapi import problems
from service.schemas import Health, Readiness

router = APIRouter(tags=["operation"])
metrics_router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Return that the process is running."""
    return Health()


@router.get("/readyz", summary="Can queries be answered?", responses=problems(503))
async def readyz(engine: EngineDep) -> Readiness:
    """Return that queries can be answered; a 503 says what is missing."""
    trouble = engine.trouble()
    if trouble is not None:
        raise NotReady(trouble)
    index = engine.live.current
    return Readiness(model=index.model_fingerprint, snapshot=index.snapshot)


@metrics_router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(engine: EngineDep) -> Response:
    """Return counts, queue length, batch sizes and stage times in Prometheus' text format."""
    return Response(engine.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
