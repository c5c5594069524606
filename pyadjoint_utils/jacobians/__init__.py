"""Jacobian and Hessian matrices of a tape: dense, by points and sparse, from as few sweeps as they take."""
