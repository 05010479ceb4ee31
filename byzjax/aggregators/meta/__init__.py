"""Meta-rules: aggregator in, aggregator out, one a file."""
