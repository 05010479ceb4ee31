"""Other people's frameworks with byzjax's rules in them; each needs its own extra."""
