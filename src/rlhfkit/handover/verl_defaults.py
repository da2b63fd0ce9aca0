"""What verl takes where a configuration does not say it, and which of its names say nothing of the algorithm."""

import re
from typing import Any

__all__ = [
    "ACTOR",
    "CORRECTION",
    "MODEL",
    "NAMES_LEFT_OUT",
    "OFF",
    "PARTS_LEFT_OUT",
    "REWARD_MODEL",
    "ROLLOUT",
    "VERL_DEFAULTS",
]

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
REWARD_MODEL, CORRECTION = "reward.reward_model", "algorithm.rollout_correction"
OPTIM_DEFAULTS = {
    "lr_scheduler_type": "constant",
    "min_lr_ratio": 0.0,
    "lr_warmup_steps": -1,
    "lr_warmup_steps_ratio": 0.0,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "clip_grad": 1.0,
}
VERL_DEFAULTS: dict[str, Any] = {
    "algorithm.adv_estimator": "gae",
    "algorithm.gamma": 1.0,
    "algorithm.lam": 1.0,
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "algorithm.kl_penalty": "kl",
    "algorithm.kl_ctrl.type": "fixed",
    "algorithm.kl_ctrl.kl_coef": 0.001,
    "algorithm.kl_ctrl.target_kl": 0.1,
    "algorithm.kl_ctrl.horizon": 10000,
    f"{CORRECTION}.rollout_is": None,
    f"{CORRECTION}.rollout_is_threshold": 2.0,
    "data.train_files": "~/data/rlhf/gsm8k/train.parquet",
    "data.prompt_key": "prompt",
    "data.train_batch_size": 1024,
    "data.max_prompt_length": 512,
    "data.max_response_length": 512,
    f"{MODEL}.path": "~/models/deepseek-llm-7b-chat",
    f"{MODEL}.custom_chat_template": None,
    f"{MODEL}.trust_remote_code": False,
    f"{MODEL}.enable_gradient_checkpointing": True,
    f"{MODEL}.lora_rank": 0,
    f"{MODEL}.lora_alpha": 16,
    f"{MODEL}.target_modules": "all-linear",
    f"{ACTOR}.ppo_mini_batch_size": 256,
    f"{ACTOR}.ppo_epochs": 1,
    f"{ACTOR}.use_dynamic_bsz": False,
    f"{ACTOR}.ppo_max_token_len_per_gpu": 16384,
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.clip_ratio_low": 0.2,
    f"{ACTOR}.clip_ratio_high": 0.2,
    f"{ACTOR}.clip_ratio_c": 3.0,
    f"{ACTOR}.policy_loss.loss_mode": "vanilla",
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ACTOR}.entropy_coeff": 0,
    f"{ACTOR}.loss_scale_factor": None,
    f"{ACTOR}.use_kl_loss": False,
    f"{ACTOR}.kl_loss_coef": 0.001,
    f"{ACTOR}.kl_loss_type": "low_var_kl",
    f"{ACTOR}.optim.lr": 1e-6,
    **{f"{ACTOR}.optim.{key}": value for key, value in OPTIM_DEFAULTS.items()},
    f"{ROLLOUT}.n": 1,
    f"{ROLLOUT}.seed": 42,
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_k": -1,
    f"{ROLLOUT}.top_p": 1,
    "critic.cliprange_value": 0.5,
    "critic.optim.lr": 1e-5,
    **{f"critic.optim.{key}": value for key, value in OPTIM_DEFAULTS.items()},
    f"{REWARD_MODEL}.enable": False,
    f"{REWARD_MODEL}.model_path": None,
    "trainer.total_training_steps": None,
    "trainer.critic_warmup": 0,
    "trainer.experiment_name": "gsm8k",
}
"""What verl 0.9.1 takes where a configuration does not say it (trainer/config/_generated_ppo_trainer.yaml)."""

PARTS_LEFT_OUT = {
    "defaults", "hydra", "ray_kwargs", "transfer_queue", "global_profiler", "distillation", "skip", "_target_",
    "profiler", "checkpoint", "fsdp_config", "fsdp", "engine_kwargs", "agent", "prometheus", "trace", "val_kwargs",
    "nccl_timeout", "strategy", "rollout_n", "checkpoint_engine", "hybrid_engine", "mtp", "qat", "sandbox_fusion",
    "ref", "fused_kernel_options", "tiled_mlp", "lora", "multi_turn", "disaggregation", "model_engine",
    "megatron", "engine", "v1", "kl_loss_coef", "kl_loss_type", "pf_ppo",
}  # fmt: skip
"""Parts of names of what is about machines, memory, logs and files, or of what is off."""
NAMES_LEFT_OUT = re.compile(
    r"trainer\.(?!total_|critic_warmup|experiment_name).*|reward\.num_workers"
    r"|data\.(?!train_files|prompt_key|train_batch_size|max_prompt_length|max_response_length|custom_cls)\w+(\.\w+)?"
    r"|.*\.(micro_batch_size\w*|\w*_micro_batch_size\w*|log_prob_\w+|\w*max_token_len_per_gpu|data_loader_seed|shuffle)"
    r"|.*\.(use_dynamic_bsz|use_torch_compile|use_fused_kernels|use_remove_padding|entropy_\w+_\w+|entropy_checkpointing"
    r"|calculate_\w+|pad_to_length|ulysses_sequence_parallel_size|loss_scale_factor|grad_clip|tau_pos|tau_neg)"
    r"|actor_rollout_ref\.rollout\.(?!n$|seed|temperature|top_k|top_p|ignore_eos|over_sample_rate)\w+"
    r"|actor_rollout_ref\.actor\.policy_loss\.(?!loss_mode)\w+"
    r"|actor_rollout_ref\.model\.(use_\w+|\w+_path|external_lib|enable_activation_offload|override_config)"
    r"|critic\.(ppo_epochs|ppo_mini_batch_size|loss_agg_mode|enable|model\..*)"
    r"|reward\.reward_model\.(?!enable$|model_path$).*|reward_model\.(?!enable$|model\.path$).*"
    r"|algorithm\.filter_groups\.(?!enable).*|(critic|actor_rollout_ref\.actor)\.optim\.(num_cycles|total_training_steps)"
)
"""The same by the whole name; of the critic what is said of the policy, too."""
OFF = {
    "actor_rollout_ref.actor.freeze_vision_tower": False,
    "actor_rollout_ref.actor.use_prefix_grouper": False,
    "actor_rollout_ref.rollout.ignore_eos": False,
    "actor_rollout_ref.rollout.over_sample_rate": 0,
    "algorithm.filter_groups.enable": False,
    "algorithm.use_pf_ppo": False,
    "algorithm.rollout_correction.bypass_mode": False,
    "algorithm.rollout_correction.loss_type": "ppo_clip",
    "algorithm.rollout_correction.rollout_is_batch_normalize": False,
    "reward.custom_reward_function.name": "compute_score",
    "reward.reward_manager.source": "register",
    "reward.reward_manager.name": "naive",
    "reward.reward_manager.module.name": "custom_reward_manager",
    **{
        f"{who}.optim.{key}": value
        for who in ("actor_rollout_ref.actor", "critic")
        for key, value in (("optimizer", "AdamW"), ("optimizer_impl", "torch.optim"), ("zero_indexed_step", True))
    },
}
"""What does nothing that the recipe does not do, as long as it is so."""
