"""The map: every place is on it, on land or sea."""

from __future__ import annotations

import numpy as np
import pytest

from mineral_batch.report import land
from mineral_batch.report.charts import Places
from mineral_batch.report.worldmap import MapShapes, world_map


def draw(places: list[list[float]]) -> MapShapes:
    return world_map(Places("places", "", np.array(places)))


@pytest.mark.parametrize(
    "places",
    [
        [[46.5, 7.9]],
        [[46.5, 7.9], [46.6, 8.1]],
        [[-89.9, -180.0], [89.9, 180.0]],
        [[10.0, 20.0], [60.0, 20.0]],
        [[0.0, -170.0], [0.0, 170.0]],
    ],
)
def test_every_place_is_inside_the_map(places: list[list[float]]) -> None:
    drawn = draw(places)
    assert len(drawn.spots) == len(places)
    assert all(0 <= spot.x <= drawn.width and 0 <= spot.y <= drawn.height for spot in drawn.spots)
    assert drawn.scale_name.text.endswith("m")
    assert drawn.height < 4 * drawn.width


def test_nearby_places_are_one_point() -> None:
    drawn = draw([[46.5, 7.9], [46.5, 7.9], [46.50001, 7.90001], [47.5, 9.9]])
    assert sorted(spot.images for spot in drawn.spots) == [1, 3]


def is_land(latitude: float, longitude: float) -> bool:
    """Whether a place lies inside an odd number of outlines (ray casting)."""
    crossings = 0
    for ring in land.rings():
        (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
        crosses = (y0 > latitude) != (y1 > latitude)
        at = x0[crosses] + (latitude - y0[crosses]) / (y1[crosses] - y0[crosses]) * (x1[crosses] - x0[crosses])
        crossings += int((at > longitude).sum())
    return crossings % 2 == 1


@pytest.mark.parametrize(
    ("name", "latitude", "longitude", "expected"),
    [
        ("Freiberg", 50.9, 13.3, True),
        ("Tsumeb", -19.2, 17.7, True),
        ("Broken Hill", -32.0, 141.5, True),
        ("Ouro Preto", -20.4, -43.5, True),
        ("Denver", 39.7, -105.0, True),
        ("mid-Atlantic", 30.0, -40.0, False),
        ("Pacific", 0.0, -150.0, False),
        ("Caspian Sea", 41.5, 51.0, False),
        ("Anadyr, west of 180 degrees", 66.0, 178.0, True),
        ("Chukotka, east of 180 degrees", 66.5, -175.0, True),
        ("Norwegian Sea, at the latitude of both", 67.0, 0.0, False),
        ("South Atlantic, at the latitude of Fiji", -16.8, -10.0, False),
        ("South Pole", -89.0, 30.0, True),
    ],
)
def test_land_is_where_it_is(name: str, latitude: float, longitude: float, expected: bool) -> None:
    assert is_land(latitude, longitude) is expected, name


def test_no_outline_runs_across_the_map() -> None:
    for ring in land.rings():
        longitude, latitude = ring.T
        across = np.abs(np.diff(longitude)) > 90
        assert not (across & (latitude[1:] > -85)).any()


def test_only_the_land_in_view_is_drawn() -> None:
    world, region = draw([[-60.0, -170.0], [70.0, 170.0]]), draw([[46.5, 7.9], [47.5, 9.9]])
    assert world.land.count("M") > 30
    assert region.land.count("M") == 1, "Europe, Asia and Africa are one outline"
