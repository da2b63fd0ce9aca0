"""The environments that Gymnasium knows by name; it calls `register` itself, by the package's entry point."""

__all__ = ["register"]


def register() -> None:
    """Make `gymnasium.make("rlhfkit/Guess-v0")` work. Nothing else is imported before it is asked for."""
    from gymnasium.envs import registration

    if "rlhfkit/Guess-v0" not in registration.registry:
        registration.register("rlhfkit/Guess-v0", entry_point="rlhfkit.envs.token:guess")
