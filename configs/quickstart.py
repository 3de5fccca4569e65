"""The whole method on a laptop: an embedded model learns from random weights.

    make quickstart
    python -m launch.pipeline --config=configs/quickstart.py

Hardware: 2 CPU cores, 8 GiB, no accelerator, no account, no download. Expected
result: BUILD_NOTES.md, "Quickstart". Every stage is the code of the 7B run with
other sizes; only `pretrain` is extra, since there are no pretrained weights here.
"""

from mlagent_jax.config import (
    CollectConfig,
    EnvConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    PoolConfig,
    PpoConfig,
    PretrainConfig,
    PromptConfig,
    RewardConfig,
    RunConfig,
    SampleConfig,
    SftConfig,
    TokenizerConfig,
)

HELD_IN = (
    "digits",
    "cactus",
    "shapes",
    "leaves",
    "houses",
    "ship",
    "crystal",
    "essays",
    "papers",
)
HELD_OUT = (
    "photo",
    "cancer",
    "species",
    "whales",
    "insults",
    "grades",
    "phrases",
)


def get_config() -> RunConfig:
    """Returns the quickstart's configuration."""
    return RunConfig(
        name="quickstart",
        held_in=HELD_IN,
        held_out=HELD_OUT,
        tokenizer=TokenizerConfig(vocab_size=1024),
        model=ModelConfig(
            vocab_size=1024,
            hidden_size=128,
            intermediate_size=384,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
            max_position_embeddings=1_024,
            compute_dtype="float32",
        ),
        prompt=PromptConfig(
            style="brief",
            history_steps=0,
            log_steps=4,
            max_feedback_chars=160,
            max_prompt_tokens=512,
        ),
        env=EnvConfig(num_workers=2, max_steps=8),
        sample=SampleConfig(
            temperature=0.7,
            max_reply_tokens=96,
            num_slots=32,
            steps_per_call=16,
            prefill_chunk=64,
            prompt_buckets=(384, 512),
        ),
        collect=CollectConfig(trajectories_per_task=36, fresh_per_task=4),
        pretrain=PretrainConfig(
            num_updates=350,
            batch_size=32,
            seq_len=64,
            optimizer=OptimizerConfig(
                peak_lr=3e-3, warmup_frac=0.05, end_lr_frac=0.3, b2=0.98
            ),
        ),
        sft=SftConfig(
            num_epochs=6.0,
            quote_frac=0.5,
            # The expert never errs: recovering is shown by mistakes put in for it.
            mistake_frac=0.1,
            batch_size=16,
            micro_batch_size=16,
            seq_lens=(384, 448, 608),
            optimizer=OptimizerConfig(peak_lr=2e-3, warmup_frac=0.05),
        ),
        ppo=PpoConfig(
            num_updates=40,
            states_per_update=64,
            # Most states are its own, and recent: there it meets its own habits.
            pool=PoolConfig(own_frac=0.75, own_size=256),
            minibatch_size=32,
            micro_batch_size=32,
            seq_lens=(448, 512, 608),
            # `paper_v1` pays 0.5 for stopping, more than most edits are worth here.
            reward=RewardConfig(preset="bounded", floor=0.2),
            kl_coef=0.01,
            entropy_coef=0.01,
            actor=OptimizerConfig(peak_lr=3e-4, end_lr_frac=0.1),
            critic=OptimizerConfig(peak_lr=2e-3, end_lr_frac=1.0),
            critic_warmup_updates=1,
            probe_every=8,
            probe_trajectories=1,
        ),
        eval=EvalConfig(
            trajectories_per_task=8, max_steps=8, fresh_states=8, samples_per_state=4
        ),
    )
