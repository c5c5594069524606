"""Long time loops: which states are stored, in memory or on disk, and which are computed again."""
