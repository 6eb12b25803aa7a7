"""What the contract suites of the ports run in: this process, and a worker's."""

import pytest
from support.ports import Opened, here, through_a_worker


@pytest.fixture(scope="module", params=[here, through_a_worker], ids=["here", "worker"])
def opened(request: pytest.FixtureRequest) -> Opened:
    chosen: Opened = request.param
    return chosen
