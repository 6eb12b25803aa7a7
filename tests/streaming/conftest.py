"""The application in this process, for each test its own; `support.app` serves one to a whole module."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from support.app import Served, serving_app

from streaming.limits import SurfaceLimits

Serve = Callable[..., AbstractAsyncContextManager[Served]]

_LIMITS = SurfaceLimits(drain_s=1)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Return what serves the application for the length of a block; see `serving_app` for its options."""

    def start(*, limits: SurfaceLimits = _LIMITS, **options: Any) -> AbstractAsyncContextManager[Served]:
        return serving_app(tmp_path, limits=limits, **options)

    return start
