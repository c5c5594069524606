"""A tape as a native function of an engine: what the bridges need to replay it inside of their callers."""
