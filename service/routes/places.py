"""The places of the index."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from indexer.answers import Place
from service.routes.dependencies import Id, IndexDep, Limit, Offset
from service.routes.openapi import problems
from service.routes.photos import describe_photo
from service.schemas import PlaceCollection, PlaceDetail, PlaceFeature, PlacePage, PlaceSummary, Point

router = APIRouter(tags=["places"], responses=problems(422, 500, 503))


class GeoJSONResponse(JSONResponse):
    """JSON with the media type of GeoJSON."""

    media_type = "application/geo+json"


@router.get("/v1/places", summary="List places")
def list_places(index: IndexDep, limit: Limit = 100, offset: Offset = 0) -> PlacePage:
    """Return the places of the index, page by page."""
    places = index.places()
    page = [PlaceSummary(**_summary(place)) for place in places[offset : offset + limit]]
    return PlacePage(total=len(places), limit=limit, offset=offset, places=page)


@router.get("/v1/places.geojson", summary="Map the places", response_class=GeoJSONResponse)
def map_places(index: IndexDep) -> PlaceCollection:
    """Return all places with a position as GeoJSON."""
    features = [feature for place in index.places() if (feature := _feature(place)) is not None]
    return PlaceCollection(features=features)


@router.get("/v1/places/{id}", summary="Show a place", responses=problems(404))
def show_place(index: IndexDep, id: Id) -> PlaceDetail:
    """Return a place with its photos."""
    place = index.place(id)
    return PlaceDetail(**_summary(place), photos=[describe_photo(photo) for photo in place.members])


def _summary(place: Place) -> dict[str, Any]:
    return {
        "id": place.id,
        "name": place.name,
        "lat": place.lat,
        "lon": place.lon,
        "photo_count": place.photos,
    }


def _feature(place: Place) -> PlaceFeature | None:
    if place.lat is None or place.lon is None:
        return None
    return PlaceFeature(
        id=place.id,
        geometry=Point(coordinates=(place.lon, place.lat)),
        properties={"name": place.name, "photo_count": place.photos},
    )
