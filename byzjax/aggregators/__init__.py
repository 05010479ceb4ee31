"""Rules, one algorithm or family a file, named as in the literature.

`lift.py` makes aggregators of a few lines of mathematics, `subsets.py` serves the rules
over all subsets of workers, `newton.py` the geometric median, `cap_weights.py` all that
take weights, and `meta/` has the rules that wrap another one.
"""
