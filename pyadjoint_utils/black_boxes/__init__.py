"""NumPy code that no engine looks into: rules by hand, complex steps and differences."""
