"""Tests of byzjax.transforms."""
