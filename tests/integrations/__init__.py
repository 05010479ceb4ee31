"""Tests of byzjax in other frameworks; each needs the extra of its own."""
