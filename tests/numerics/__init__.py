"""Tests of byzjax.numerics."""
