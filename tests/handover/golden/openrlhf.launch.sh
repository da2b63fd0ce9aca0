#!/usr/bin/env bash
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# small, handed over by rlhfkit to openrlhf 0.11.2.
# In the comments "here" is rlhfkit and "there" is openrlhf; in brackets stands the place in openrlhf/ of that version that reads the line.
# To know:
# - code of a model's directory runs there without asking (trust_remote_code=True in its loaders)
# - vLLM samples there, and its logprobs differ a little from those of the update; without the engine vllm in the recipe nothing corrects for it (--algo.advantage.is_correction_level does)
# - prompts are shuffled as a whole there, so that one may come again before all were seen
ARGS=(
  # from sft/ of the run = RUN/sft, model.trust_remote_code = false; policy and reference begin here; code of the model's directory may run there, whatever model.trust_remote_code says [cli/train_ppo_ray.py:173]
  --actor.model_name_or_path "$here/policy"
  # from ppo.value.init = "auto"; the run's reward model, whose normalised score is the first value, as here; or the policy with a head of N(0, 1 / (width + 1)^2), where it is zero here [trainer/ray/ppo_critic.py:207, models/model.py:164]
  --critic.model_name_or_path "$here/critic"
  # from reward_model/ of the run = RUN/reward_model; a sequence classifier with one output; it reads the policy's tokens, EOS included [trainer/ppo_utils/experience_maker.py:144]
  --reward.model_name_or_path "$here/reward_model"
  # from reward = "reward_model"; (raw - mean) / std, of reward model and critic, with mean and std out of the config.json of each, where this export wrote them [models/model.py:238, models/model.py:309]
  --reward.normalize_enable
  # not of the recipe; name of the head [models/model.py:74]
  --ds.value_head_prefix score
  # from model.dtype = "auto"; type of the weights, beside float32 masters [models/model.py:94]
  --ds.param_dtype bf16
  # from model.gradient_checkpointing = "auto"; memory [trainer/ray/ppo_actor.py:549]
  --actor.gradient_checkpointing_enable
  # from data.prompts = "rows"; each prompt as often as the run here draws it; shuffled there [trainer/ppo_trainer.py:30]
  --data.prompt_dataset "$here/prompts.jsonl"
  # not of the recipe; the model's template stands around it already [datasets/prompts_dataset.py:39]
  --data.input_key prompt
  # from data.max_prompt_tokens = 24, rollout.max_response_tokens = 40; tokens of prompt and response together [utils/agent.py:227]
  --data.max_len 64
  # from rollout.max_response_tokens = 40; tokens, EOS included, as here [trainer/ppo_utils/samples_generator.py:203]
  --rollout.max_new_tokens 40
  # from ppo.rollout_episodes = 64, ppo.group_size = 4; prompts there; episodes here [trainer/ppo_utils/samples_generator.py:100]
  --rollout.batch_size 16
  # from ppo.group_size = 4; responses per prompt, as here [trainer/ppo_utils/samples_generator.py:100]
  --rollout.n_samples_per_prompt 4
  # from ppo.minibatch_episodes = 16; episodes of an optimizer step, of all GPUs, as here [utils/deepspeed/deepspeed.py:110]
  --train.batch_size 16
  # from ppo.microbatch_tokens = 640; sequences there, tokens here: as many of the greatest length as fit; memory alone [utils/deepspeed/deepspeed.py:110]
  --train.micro_batch_size 8
  # from ppo.microbatch_tokens = 640; the same of passes without a gradient [trainer/ppo_utils/experience_maker.py:71]
  --rollout.micro_batch_size 8
  # from ppo.epochs = 2; passes over a rollout, as here [trainer/ray/ppo_actor.py:175]
  --train.max_epochs 2
  # from ppo.iterations = 10; passes over prompts.jsonl, which holds prompts for all iterations [trainer/ppo_trainer.py:520]
  --train.num_episodes 1
  # from seed = 0; of everything [cli/train_ppo_ray.py]
  --train.seed 0
  # from rollout.temperature = 0.7; divides the logits in rollout, update and reference, as here [models/actor.py:270]
  --rollout.temperature 0.7
  # from rollout.top_p = 0.9; as here [trainer/ppo_utils/samples_generator.py:201]
  --rollout.top_p 0.9
  # from ppo.kl.coef = 0.07; reward per nat; subtracted at each token there as here, so that a sequence pays for its summed KL. 0 leaves the reference out [models/utils.py:144]
  --algo.kl.init_coef 0.07
  # from ppo.kl.estimator = "k1"; k1 is logprob - reference's of each token, there cut to [-10, 10] [models/utils.py:95]
  --algo.kl.estimator k1
  # from ppo.estimator = "gae", ppo.normalize_std = true; grpo is group_norm there, or dr_grpo without the deviation; advantages of gae and reinforce are whitened over the rollout, as here [trainer/ppo_utils/experience_maker.py:325]
  --algo.advantage.estimator gae
  # from ppo.gamma = 0.99; per token, as here [trainer/ppo_utils/experience_maker.py:382]
  --algo.advantage.gamma 0.99
  # from ppo.gae_lambda = 0.9; per token, as here (1 where it is not set) [trainer/ppo_utils/experience_maker.py:383]
  --algo.advantage.lambd 0.9
  # from ppo.ratio = "token"; the clipped loss, by tokens or by responses [models/loss.py:186]
  --actor.policy_loss_type ppo
  # from ppo.loss_aggregation = "token"; mean over a minibatch's tokens, or over its responses of their means, as here [models/loss.py:32]
  --actor.loss_agg_mode token-mean
  # from ppo.clip_range = 0.15; the ratio stays within 1 - first and 1 + second [models/loss.py:201]
  --actor.eps_clip_low_high 0.15 0.15
  # from ppo.entropy_coef = 0.002; bonus per nat, as here [trainer/ray/ppo_actor.py:353]
  --actor.entropy_coef 0.002
  # from ppo.value.clip_range = 0.3; how far a value may move; always on there (0.5), so that a huge one switches it off; the loss is half the larger square, as here [models/loss.py:283]
  --critic.value_clip 0.3
  # from ppo.value.warmup_iterations = 3; number, counted from 0, of the last iteration without an update of the policy; how many they are here. Meanwhile the policy's rate stands still there, and falls here [trainer/ppo_trainer.py:272]
  --critic.freezing_steps 2
  # from ppo.optim.learning_rate = 3e-06; highest rate, as here [utils/deepspeed/deepspeed.py:361]
  --actor.adam.lr 3e-06
  # from ppo.optim.adam_betas = [0.9, 0.98]; as here (0.9 0.95 where they are not set) [utils/deepspeed/deepspeed.py:362]
  --actor.adam.betas 0.9 0.98
  # from ppo.optim.adam_eps = "auto"; 1e-8 where it is not set; PPO here takes 1e-5 [utils/deepspeed/deepspeed.py:363]
  --actor.adam.eps 1e-05
  # from ppo.optim.weight_decay = 0.02; of all but biases and weights of norms, by their names; of matrices here [utils/deepspeed/deepspeed_utils.py:124]
  --actor.adam.weight_decay 0.02
  # from ppo.optim.schedule = "cosine"; moves with each optimizer step, as here, to zero (to a tenth where it is not set) [utils/deepspeed/deepspeed.py:379]
  --actor.lr_scheduler cosine
  # from ppo.optim.warmup_share = 0.1; share of the optimizer steps, as here (0.03 where it is not set) [utils/deepspeed/deepspeed.py:381]
  --actor.lr_warmup_ratio 0.1
  # from ppo.optim.max_grad_norm = 1.0; norm of the whole gradient, as here [utils/deepspeed/deepspeed.py:387]
  --actor.max_norm 1.0
  # from ppo.value.optim.learning_rate = 7e-06; highest rate, as here [utils/deepspeed/deepspeed.py:361]
  --critic.adam.lr 7e-06
  # from ppo.value.optim.adam_betas = [0.9, 0.999]; as here (0.9 0.95 where they are not set) [utils/deepspeed/deepspeed.py:362]
  --critic.adam.betas 0.9 0.999
  # from ppo.value.optim.adam_eps = 1e-07; 1e-8 where it is not set; PPO here takes 1e-5 [utils/deepspeed/deepspeed.py:363]
  --critic.adam.eps 1e-07
  # from ppo.value.optim.weight_decay = 0.0; of all but biases and weights of norms, by their names; of matrices here [utils/deepspeed/deepspeed_utils.py:124]
  --critic.adam.weight_decay 0.0
  # from ppo.value.optim.schedule = "constant"; moves with each optimizer step, as here, to zero (to a tenth where it is not set) [utils/deepspeed/deepspeed.py:379]
  --critic.lr_scheduler constant_with_warmup
  # from ppo.value.optim.warmup_share = 0.0; share of the optimizer steps, as here (0.03 where it is not set) [utils/deepspeed/deepspeed.py:381]
  --critic.lr_warmup_ratio 0.0
  # from ppo.value.optim.max_grad_norm = 0.5; norm of the whole gradient, as here [utils/deepspeed/deepspeed.py:387]
  --critic.max_norm 0.5
  # from ppo.clip_score = 4.0; bound on a score, before the KL is subtracted; always on there (-10 10), so that a huge one switches it off [models/utils.py:142]
  --reward.clip_range -4.0 4.0
  # not of the recipe; GPUs, as --gpus says [cli/train_ppo_ray.py]
  --actor.num_gpus_per_node 2
  # not of the recipe; GPUs, as --gpus says [cli/train_ppo_ray.py]
  --ref.num_gpus_per_node 2
  # not of the recipe; GPUs, as --gpus says [cli/train_ppo_ray.py]
  --critic.num_gpus_per_node 2
  # not of the recipe; GPUs, as --gpus says [cli/train_ppo_ray.py]
  --reward.num_gpus_per_node 2
  # not of the recipe; what samples: one on each GPU [cli/train_ppo_ray.py]
  --vllm.num_engines 2
  # not of the recipe; share of a GPU's memory [cli/train_ppo_ray.py]
  --vllm.gpu_memory_utilization 0.5
  # not of the recipe; all models share the GPUs, in turn [cli/train_ppo_ray.py]
  --train.colocate_all
  # not of the recipe; memory [cli/train_ppo_ray.py]
  --vllm.enable_sleep
  # not of the recipe; memory [cli/train_ppo_ray.py]
  --ds.enable_sleep
  # not of the recipe; where the policy is written [cli/train_ppo_ray.py]
  --ckpt.output_dir "$here/trained"
  # not of the recipe; where checkpoints are written [cli/train_ppo_ray.py]
  --ckpt.path "$here/checkpoints"
)
exec python3 -m openrlhf.cli.train_ppo_ray "${ARGS[@]}" "$@"
