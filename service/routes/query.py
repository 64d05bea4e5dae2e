"""Queries with photos, and descriptors."""

from fastapi import APIRouter

from service.routes.dependencies import (
    EngineDep,
    FiltersDep,
    ImageDep,
    ImagesDep,
    IndexDep,
    K,
    Matched,
    Verify,
)
from service.routes.openapi import image_body, problems
from service.schemas import Embeddings, QueryAnswer

router = APIRouter(tags=["query"], responses=problems(400, 413, 415, 422, 500, 503))


@router.post(
    "/v1/query",
    summary="Find where a photo was taken",
    openapi_extra=image_body(several=False),
    responses=problems(409),
)
async def query(
    engine: EngineDep,
    index: IndexDep,
    filters: FiltersDep,
    image: ImageDep,
    k: K = 5,
    verify: Verify = True,
    matches: Matched = False,
) -> QueryAnswer:
    """Return the nearest places, the position and the confidence for one photo.

    Send the photo as multipart part `image`, or as the body with a content type `image/*`. Filters restrict
    which photos may answer; a photo without the filtered value does not pass. `lat` and `lon` without
    `radius_m` only add the distance to each place.
    """
    answer = await engine.answer(index, [image], k, filters, verify, matches)
    return QueryAnswer.model_validate(answer.to_json())


@router.post(
    "/v1/query/clip",
    summary="Find where a clip was taken",
    openapi_extra=image_body(several=True),
    responses=problems(409),
)
async def query_clip(
    engine: EngineDep, index: IndexDep, filters: FiltersDep, images: ImagesDep, k: K = 5
) -> QueryAnswer:
    """Return the nearest places, the position and the confidence for several photos of one place.

    Send each frame as a multipart part `image`, in any order. They are pooled into one descriptor. Filters
    work as for one photo.
    """
    answer = await engine.answer(index, images, k, filters)
    return QueryAnswer.model_validate(answer.to_json())


@router.post(
    "/v1/embed",
    summary="Turn images into descriptors",
    openapi_extra=image_body(several=True),
)
async def embed(engine: EngineDep, index: IndexDep, images: ImagesDep) -> Embeddings:
    """Return one descriptor for each image, in the order of the `image` parts."""
    descriptors = await engine.embed(index, images)
    return Embeddings(
        model=index.model_fingerprint,
        dim=len(descriptors[0]),
        descriptors=[descriptor.tolist() for descriptor in descriptors],
    )
