"""Tests of byzjax.training."""
