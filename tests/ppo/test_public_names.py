import rlhfkit.ppo


def test_every_public_name_can_be_imported_and_is_sorted():
    assert all(hasattr(rlhfkit.ppo, name) for name in rlhfkit.ppo.__all__)
    assert sorted(rlhfkit.ppo.__all__) == rlhfkit.ppo.__all__


def test_the_contract_is_exported():
    contract = ["gae", "whiten", "policy_loss", "value_loss", "kl_estimate", "FixedKL", "AdaptiveKL", "token_rewards"]
    assert set(contract) <= set(rlhfkit.ppo.__all__)
