"""The Python on docs/flower.md, which needs Flower."""

import pytest

pytest.importorskip("flwr")

from tests import test_pages


def test_blocks_run_in_order():
    test_pages.run(test_pages.OF_FLOWER)
