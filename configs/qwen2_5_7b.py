"""ML-Agent at the paper's size: Qwen-2.5-7B-Instruct, all stages.

    python -m launch.pipeline --config=configs/qwen2_5_7b.py

Weights: a Hugging Face folder at models/Qwen2.5-7B-Instruct (or --set init=...).
Hardware, commands and settings of one stage: `qwen2_5_7b_{collect,sft,ppo,eval}.py`,
which change what their slice needs and nothing else.

Fine-tuning follows the paper (A.4): all parameters, learning rate 2e-5 with cosine
decay, no warm-up, no weight decay, 2 epochs, batches of 64, 15,000 tokens. Where the
paper is silent (A.11) the values are ours:

- PPO: verl's defaults of early 2025, which the paper's code base takes (`PpoConfig`):
  actor 1e-6, critic 1e-5, clip 0.2, KL 1e-3 in the reward, gamma = lambda = 1, one
  epoch, one sample a state at temperature 1; 64 states an update, since the paper's
  fine-tuning has batches of 64; 40 updates, as many as its Figure 4 shows.
- The prompt is the whole conversation, up to 12,000 tokens; with a reply of up to
  3,072 that fills the length of fine-tuning.
- Start: the instruct model, whose chat format the paper's template names.
"""

from mlagent_jax.config import (
    CollectConfig,
    EnvConfig,
    EvalConfig,
    OptimizerConfig,
    PolicyConfig,
    PpoConfig,
    PromptConfig,
    RewardConfig,
    RunConfig,
    SampleConfig,
    SftConfig,
    TokenizerConfig,
    qwen2_5,
)

WEIGHTS = "models/Qwen2.5-7B-Instruct"
SEQ_LENS = (4_096, 8_192, 15_360)  # 15,000 in whole blocks of the kernel
HELD_IN = (
    "cifar-10",
    "aerial-cactus-identification",
    "dogs-vs-cats-redux-kernels-edition",
    "plant-pathology-2020-fgvc7",
    "home-data-for-ml-course",
    "spaceship-titanic",
    "nomad2018-predict-transparent-conductors",
    "feedback-prize-english-language-learning",
    "ogbn-arxiv",
)
HELD_OUT = (
    "denoising-dirty-documents",
    "leaf-classification",
    "statoil-iceberg-classifier-challenge",
    "whale-categorization-playground",
    "learning-agency-lab-automated-essay-scoring-2",
    "detecting-insults-in-social-commentary",
    "spooky-author-identification",
    "jigsaw-toxic-comment-classification-challenge",
    "us-patent-phrase-to-phrase-matching",
    "tabular-playground-series-dec-2021",
)


def get_config() -> RunConfig:
    """Returns the configuration of the whole run."""
    return RunConfig(
        name="qwen2_5_7b",
        held_in=HELD_IN,
        held_out=HELD_OUT,
        init=WEIGHTS,
        model=qwen2_5("7B", remat="layer"),
        tokenizer=TokenizerConfig(path=WEIGHTS),
        prompt=PromptConfig(style="full", max_prompt_tokens=12_000),
        env=EnvConfig(num_workers=32),
        sample=SampleConfig(
            max_reply_tokens=3_072,
            num_slots=64,
            # With a reply of full length whole pages of the cache.
            prompt_buckets=(5_120, 8_192, 12_288),
        ),
        collect=CollectConfig(
            # 10,000 trajectories over 9 tasks (paper A.3); any OpenAI-compatible
            # endpoint may stand in for the paper's expert.
            policy=PolicyConfig(
                kind="api",
                base_url="https://api.openai.com/v1",
                model="gpt-4o-mini",
                max_concurrency=32,
            ),
            trajectories_per_task=1_112,
            fresh_per_task=24,
            num_in_flight=64,
        ),
        sft=SftConfig(
            num_epochs=2.0,
            batch_size=64,
            micro_batch_size=16,
            seq_lens=SEQ_LENS,
            optimizer=OptimizerConfig(peak_lr=2e-5),
        ),
        ppo=PpoConfig(
            num_updates=40,
            states_per_update=64,
            minibatch_size=64,
            micro_batch_size=8,
            seq_lens=SEQ_LENS,
            reward=RewardConfig(preset="paper_v1"),
        ),
        eval=EvalConfig(trajectories_per_task=8, max_steps=15),
    )
