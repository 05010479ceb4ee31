"""Rules by name. `num_byzantine` is the configuration's, wherever a rule has it."""

import functools

import byzjax

RULES = {
    name: getattr(byzjax, name)
    for name in (
        *("mean", "median", "trimmed_mean", "meamed", "phocas", "sign_majority"),
        *("krum", "multi_krum", "medoid", "bulyan", "mda", "smea", "monna", "aksel"),
        *("cge", "caf", "dnc", "centered_clipping", "foolsgold", "signguard"),
        *("clipped_clustering", "flame", "ctma", "nnm", "clipping", "arc"),
    )
} | {
    # As in the authors' code: three steps of smoothed Weiszfeld from zero.
    "geometric_median": functools.partial(
        byzjax.geometric_median, smoothing=0.1, num_iterations=3, init="zeros"
    ),
    "bucketing": functools.partial(byzjax.bucketing, bucket_size=2),
}
