"""Where models meet people: pairs are sampled for a store, and people, real or simulated, are waited for."""
