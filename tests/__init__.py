"""Tests of byzjax; helpers are imported as `from tests import ...`."""
