"""Experiments with byzjax: public API only."""
