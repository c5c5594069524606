"""Function transformations of programs of overloaded functions: their derivatives, and rules by hand."""
