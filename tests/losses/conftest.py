import pytest

from dhel_kcl.losses.streaming import tiles


@pytest.fixture
def tile_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sets the size of a tile; the test names the sizes."""
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", request.param)
    return request.param
