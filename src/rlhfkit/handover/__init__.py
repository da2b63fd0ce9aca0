"""Recipes handed over to OpenRLHF, verl and NeMo RL, every unit translated, and verl's configuration read back."""
