"""The project alone on fixed workloads, for whoever wants to compare."""
