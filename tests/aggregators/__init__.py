"""Tests of byzjax.aggregators."""
