"""A tape as compiled programs: lowered to a plan of pure calls, loops re-rolled, each engine's part in one call."""
