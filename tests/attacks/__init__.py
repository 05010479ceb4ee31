"""Tests of byzjax.attacks."""
