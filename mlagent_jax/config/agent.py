"""How the agent acts: prompt, environment, who writes replies, sampling."""

import dataclasses
from typing import Literal

from mlagent_jax.config.checks import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How a state becomes a chat.

    Attributes:
      style: "full" explains every action and rule; "brief" states the task only,
        for small models that learn the format by training.
      history_steps: how many of the last steps appear as turns of the chat; the
        script shown is the one before them. None shows all; 0 shows none.
      log_steps: how many steps before those appear as one line each.
      max_feedback_chars: a longer feedback keeps its head and tail.
      max_prompt_tokens: a longer prompt ends the trajectory (TRUNCATED_TOKENS).
    """

    style: Literal["full", "brief"] = "full"
    history_steps: int | None = None
    log_steps: int = 15
    max_feedback_chars: int = 4_000
    max_prompt_tokens: int = 12_000

    def __post_init__(self) -> None:
        is_ok = self.history_steps is None or self.history_steps >= 0
        check(is_ok, "prompt.history_steps", self.history_steps, "None or >= 0")
        check(self.log_steps >= 0, "prompt.log_steps", self.log_steps, ">= 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Execution of actions.

    Attributes:
      num_workers: script executions at once; each is one warm CPU process.
      backend: where the workers run: "process" on this host, "ray" on a Ray cluster
        (extra `ray`), whose nodes share the run directory.
      ray_address: of the cluster; "auto" is the one that this host belongs to.
      isolation: "bubblewrap", "process" (weak), or "auto": bubblewrap if it works,
        else process with a warning and a stamp on every result.
      max_steps: steps of a trajectory (paper: 15).
      max_time_s: wall-clock seconds of a trajectory (paper: 1,800).
      max_reply_chars: a longer reply is invalid; the record keeps its head.
      use_cache: reuse the result of an identical workspace of the same task.
      verify_cache_frac: share of the cache's answers that are executed all the same
        and compared; a difference is logged and stamped on the step.
      profile: how actions are written: "direct" (the policy writes the edit) or
        "mlab" (MLAgentBench's actions; needs an editor, see `RunConfig.editor`).
      editor_seed: seed of every request to the editor.
      preload: modules that warm workers import before they fork.
    """

    num_workers: int = 2
    backend: Literal["process", "ray"] = "process"
    ray_address: str = "auto"
    isolation: Literal["auto", "bubblewrap", "process"] = "auto"
    max_steps: int = 15
    max_time_s: float = 1_800.0
    max_reply_chars: int = 64_000
    use_cache: bool = True
    verify_cache_frac: float = 0.0
    profile: Literal["direct", "mlab"] = "direct"
    editor_seed: int = 0
    preload: tuple[str, ...] = (
        "numpy",
        "pandas",
        "scipy.ndimage",
        "scipy.optimize",
        "scipy.signal",
        "scipy.sparse.linalg",
        "scipy.stats",
        "sklearn.calibration",
        "sklearn.cluster",
        "sklearn.compose",
        "sklearn.cross_decomposition",
        "sklearn.decomposition",
        "sklearn.discriminant_analysis",
        "sklearn.ensemble",
        "sklearn.feature_extraction.text",
        "sklearn.feature_selection",
        "sklearn.gaussian_process",
        "sklearn.impute",
        "sklearn.isotonic",
        "sklearn.kernel_approximation",
        "sklearn.kernel_ridge",
        "sklearn.linear_model",
        "sklearn.manifold",
        "sklearn.metrics",
        "sklearn.mixture",
        "sklearn.model_selection",
        "sklearn.multiclass",
        "sklearn.multioutput",
        "sklearn.naive_bayes",
        "sklearn.neighbors",
        "sklearn.neural_network",
        "sklearn.pipeline",
        "sklearn.preprocessing",
        "sklearn.semi_supervised",
        "sklearn.svm",
        "sklearn.tree",
    )

    def __post_init__(self) -> None:
        check(self.num_workers >= 1, "env.num_workers", self.num_workers, ">= 1")
        check(self.max_steps >= 1, "env.max_steps", self.max_steps, ">= 1")
        check(self.max_time_s > 0, "env.max_time_s", self.max_time_s, "> 0")
        frac = self.verify_cache_frac
        check(0 <= frac <= 1, "env.verify_cache_frac", frac, "in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Who writes replies in a stage that takes any policy.

    Attributes:
      kind: "scripted" (offline expert), "local" (our sampler), "api".
      checkpoint: for "local": "sft" or "ppo" (of this run) or a Hugging Face folder.
      base_url: for "api": root of an OpenAI-compatible endpoint, e.g. ".../v1".
      model: for "api": model name sent with each request.
      api_key_env: for "api": environment variable that holds the key.
      max_concurrency: for "api": requests in flight.
      timeout_s: for "api": seconds of one request.
      prompt_usd_per_million: for "api": price of a million prompt tokens.
      reply_usd_per_million: for "api": price of a million reply tokens.
      max_tokens: for "api": prompt and reply tokens that a run may spend there;
        0 sets no limit.
      max_usd: for "api": money that a run may spend there; 0.0 sets no limit.
    """

    kind: Literal["scripted", "local", "api"] = "scripted"
    checkpoint: str = "ppo"
    base_url: str = ""
    model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    max_concurrency: int = 8
    timeout_s: float = 120.0
    prompt_usd_per_million: float = 0.0
    reply_usd_per_million: float = 0.0
    max_tokens: int = 0
    max_usd: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "timeout_s"):
            value = getattr(self, name)
            check(value > 0, f"policy.{name}", value, "> 0")
        for name in (
            "prompt_usd_per_million",
            "reply_usd_per_million",
            "max_tokens",
            "max_usd",
        ):
            value = getattr(self, name)
            check(value >= 0, f"policy.{name}", value, ">= 0")
        has_price = self.prompt_usd_per_million + self.reply_usd_per_million > 0
        check(
            self.max_usd == 0 or has_price,
            "policy.max_usd",
            self.max_usd,
            "0.0 where no price is set (prompt_usd_per_million, reply_usd_per_million)",
        )

    def usd(self, prompt_tokens: float, reply_tokens: float) -> float:
        """Returns what that many tokens cost."""
        return (
            prompt_tokens * self.prompt_usd_per_million
            + reply_tokens * self.reply_usd_per_million
        ) / 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Decoding of replies.

    Attributes:
      temperature: 0.0 is greedy.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of tokens with this mass; 1.0 keeps all.
      max_reply_tokens: a reply is cut there.
      stop: strings that end a reply besides the end-of-turn token (kept out).
      num_slots: sequences decoded together.
      steps_per_call: decode steps fused on the device between host visits.
      prompt_buckets: prompt lengths that the cache is sized for, ascending; it
        grows to the smallest that is needed. A prompt longer than the last is
        refused. Few means few compiles.
      prefill_chunk: prompt tokens of one forward pass. Prompts share the prefill
        of what they have in common, in whole chunks.
      num_prefixes: how many prefixes (the task's part of prompts, or the prompt of
        several samples) are kept once for all sequences that start with them and are
        decoded together. Saves memory and its traffic. 0: each sequence keeps its own.
      prefix_readers: sequences that share one kept prefix at most; a prefix that more
        of them start with is kept several times.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_reply_tokens: int = 1_024
    stop: tuple[str, ...] = ()
    num_slots: int = 32
    steps_per_call: int = 16
    prompt_buckets: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)
    prefill_chunk: int = 256
    num_prefixes: int = 0
    prefix_readers: int = 8

    def __post_init__(self) -> None:
        check(self.temperature >= 0, "sample.temperature", self.temperature, ">= 0")
        check(0 < self.top_p <= 1, "sample.top_p", self.top_p, "in (0, 1]")
        check(self.top_k >= 0, "sample.top_k", self.top_k, ">= 0")
        for name in (
            "max_reply_tokens",
            "num_slots",
            "steps_per_call",
            "prefill_chunk",
            "prefix_readers",
        ):
            value = getattr(self, name)
            check(value >= 1, f"sample.{name}", value, "a positive integer")
        check(self.num_prefixes >= 0, "sample.num_prefixes", self.num_prefixes, ">= 0")
        buckets = self.prompt_buckets
        is_ok = len(buckets) > 0 and list(buckets) == sorted(set(buckets))
        check(is_ok, "sample.prompt_buckets", buckets, "ascending lengths")
