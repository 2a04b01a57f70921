"""W_i = W_base + Δ_i (DeRS eq. 2): bases, clusters of experts, and errors of weights."""
