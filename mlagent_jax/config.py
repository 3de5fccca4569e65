"""Run configuration: one frozen dataclass a stage, checked when it is built.

A run is a file `configs/<run>.py` with `get_config() -> RunConfig`; single fields
are changed by `--set section.field=value`. Every section checks its own ranges
in `__post_init__`, so that a wrong value stops a program before any work.
"""

import ast
import dataclasses
import difflib
import importlib.util
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from mlagent_jax.errors import ConfigError


def _check(is_ok: bool, field: str, value: object, expected: str) -> None:
    if not is_ok:
        raise ConfigError(f"{field} = {value!r}: expected {expected}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a Qwen-2.5 model; names follow Hugging Face's config.json.

    Attributes:
      vocab_size: V; rows of the embedding table (may exceed the tokenizer's).
      hidden_size: D.
      intermediate_size: F.
      num_layers: L.
      num_heads: N query heads.
      num_kv_heads: K key/value heads; divides num_heads.
      head_dim: H; even.
      rope_theta: base of the rotary position embedding.
      rms_norm_eps: added to the mean square.
      tie_word_embeddings: True if the output layer is the embedding table.
      max_position_embeddings: longest sequence the model was made for.
      compute_dtype: dtype of activations; weights are kept in float32.
      remat: what the backward pass recomputes.
      attention: implementation, see model/attention.py; "auto" goes by backend.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32_768
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "layer"] = "none"
    attention: Literal["auto", "blocked", "xla"] = "auto"

    def __post_init__(self) -> None:
        for name in [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
        ]:
            value = getattr(self, name)
            _check(value >= 1, f"model.{name}", value, "a positive integer")
        _check(
            self.num_heads % self.num_kv_heads == 0,
            "model.num_kv_heads",
            self.num_kv_heads,
            f"a divisor of num_heads = {self.num_heads}",
        )
        _check(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "even")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (at most once) takes what is left.

    Attributes:
      data: replicas of the parameters.
      fsdp: shards of parameters and optimizer state; the batch is split too.
      tensor: shards of heads, MLP width and vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        is_ok = all(s == -1 or s >= 1 for s in sizes) and sizes.count(-1) <= 1
        _check(is_ok, "mesh", sizes, "positive sizes, at most one -1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where text becomes tokens.

    Attributes:
      path: Hugging Face folder or SentencePiece `.model`; None trains a byte-level
        BPE of Qwen2's kind on the collected trajectories (`<workdir>/tokenizer`).
      vocab_size: size of the trained vocabulary, special tokens included.
    """

    path: str | None = None
    vocab_size: int = 768

    def __post_init__(self) -> None:
        _check(
            self.vocab_size >= 300, "tokenizer.vocab_size", self.vocab_size, ">= 300"
        )


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
        _check(is_ok, "prompt.history_steps", self.history_steps, "None or >= 0")
        _check(self.log_steps >= 0, "prompt.log_steps", self.log_steps, ">= 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Execution of actions.

    Attributes:
      num_workers: script executions at once; each is one warm CPU process.
      isolation: "bubblewrap", "process" (weak), or "auto": bubblewrap if it works,
        else process with a warning and a stamp on every result.
      max_steps: steps of a trajectory (paper: 15).
      max_time_s: wall-clock seconds of a trajectory (paper: 1,800).
      max_reply_chars: a longer reply is invalid; the record keeps its head.
      use_cache: reuse the result of an identical workspace of the same task.
      preload: modules that warm workers import before they fork.
    """

    num_workers: int = 2
    isolation: Literal["auto", "bubblewrap", "process"] = "auto"
    max_steps: int = 15
    max_time_s: float = 1_800.0
    max_reply_chars: int = 64_000
    use_cache: bool = True
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
        _check(self.num_workers >= 1, "env.num_workers", self.num_workers, ">= 1")
        _check(self.max_steps >= 1, "env.max_steps", self.max_steps, ">= 1")
        _check(self.max_time_s > 0, "env.max_time_s", self.max_time_s, "> 0")


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
    """

    kind: Literal["scripted", "local", "api"] = "scripted"
    checkpoint: str = "ppo"
    base_url: str = ""
    model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    max_concurrency: int = 8
    timeout_s: float = 120.0


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

    def __post_init__(self) -> None:
        _check(self.temperature >= 0, "sample.temperature", self.temperature, ">= 0")
        _check(0 < self.top_p <= 1, "sample.top_p", self.top_p, "in (0, 1]")
        _check(self.top_k >= 0, "sample.top_k", self.top_k, ">= 0")
        for name in (
            "max_reply_tokens",
            "num_slots",
            "steps_per_call",
            "prefill_chunk",
        ):
            value = getattr(self, name)
            _check(value >= 1, f"sample.{name}", value, "a positive integer")
        buckets = self.prompt_buckets
        is_ok = len(buckets) > 0 and list(buckets) == sorted(set(buckets))
        _check(is_ok, "sample.prompt_buckets", buckets, "ascending lengths")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Expert trajectories for fine-tuning and the state pool (paper A.3).

    Attributes:
      policy: the expert.
      trajectories_per_task: recorded for each held-in task.
      fresh_per_task: further ones whose states are kept for comparing policies;
        never trained on.
      ideas_per_task: size of the idea pool (paper: >= 100).
      selected_ideas: kept by farthest-point selection (paper: 10).
      max_ideas_in_prompt: 1 to this many, at random, go into the first prompt.
      num_in_flight: trajectories that run side by side.
    """

    policy: PolicyConfig = PolicyConfig()
    trajectories_per_task: int = 40
    fresh_per_task: int = 6
    ideas_per_task: int = 120
    selected_ideas: int = 10
    max_ideas_in_prompt: int = 3
    num_in_flight: int = 16

    def __post_init__(self) -> None:
        _check(
            1 <= self.selected_ideas <= self.ideas_per_task,
            "collect.selected_ideas",
            self.selected_ideas,
            f"in [1, ideas_per_task = {self.ideas_per_task}]",
        )
        _check(
            1 <= self.max_ideas_in_prompt <= self.selected_ideas,
            "collect.max_ideas_in_prompt",
            self.max_ideas_in_prompt,
            f"in [1, selected_ideas = {self.selected_ideas}]",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a cosine schedule.

    Attributes:
      peak_lr: learning rate after warm-up.
      end_lr_frac: final learning rate divided by the peak.
      warmup_frac: part of the updates spent rising linearly from 0.
      weight_decay: decoupled.
      clip_norm: global norm of the gradient.
      b1: decay of the first moment.
      b2: decay of the second moment.
    """

    peak_lr: float
    end_lr_frac: float = 0.0
    warmup_frac: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95

    def __post_init__(self) -> None:
        _check(self.peak_lr > 0, "optimizer.peak_lr", self.peak_lr, "> 0")
        _check(
            0 <= self.warmup_frac < 1,
            "optimizer.warmup_frac",
            self.warmup_frac,
            "in [0, 1)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Copying practice that stands in for pretraining of the embedded default.

    A model with random weights first learns to copy: it is trained on random token
    strings that repeat, until attention heads that find earlier occurrences form.
    Not used when the run starts from a Hugging Face folder.

    Attributes:
      num_updates: optimizer updates.
      batch_size: sequences an update.
      seq_len: tokens a sequence.
      optimizer: its settings.
    """

    num_updates: int = 300
    batch_size: int = 32
    seq_len: int = 128
    optimizer: OptimizerConfig = OptimizerConfig(peak_lr=3e-3, warmup_frac=0.05)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Exploration-enriched supervised fine-tuning (paper A.3, A.4).

    Attributes:
      num_epochs: passes over the examples.
      batch_size: sequences an update, over all devices.
      micro_batch_size: sequences of one forward pass; the rest accumulates.
      seq_lens: padded lengths, ascending; longer examples are dropped, counted.
      optimizer: its settings.
      eval_frac: part of the trajectories held back for the evaluation loss.
      eval_every: updates between evaluations and checkpoints.
      keep_checkpoints: how many to keep, the best one besides.
    """

    num_epochs: float = 2.0
    batch_size: int = 64
    micro_batch_size: int = 64
    seq_lens: tuple[int, ...] = (15_000,)
    optimizer: OptimizerConfig = OptimizerConfig(peak_lr=2e-5)
    eval_frac: float = 0.05
    eval_every: int = 100
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        is_ok = self.batch_size % self.micro_batch_size == 0
        _check(
            is_ok,
            "sft.micro_batch_size",
            self.micro_batch_size,
            f"a divisor of batch_size = {self.batch_size}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A named preset of the step reward and its knobs.

    Attributes:
      preset: "paper_v1" (0 / 0.5 / sigmoid), "paper_v2" (-1 / 0 / linear) or
        "bounded" (ours: clipped, scale-free, duration-aware, with milestones).
      alpha: scale of the relative improvement; the paper's v1 uses 100.
      clip: bound of the metric part of `bounded`.
      milestone: credit of `bounded` for a script that fails late, in [0, 1).
      duration_weight: cost in `bounded` of using the whole time limit.
    """

    preset: Literal["paper_v1", "paper_v2", "bounded"] = "paper_v1"
    alpha: float = 100.0
    clip: float = 1.0
    milestone: float = 0.2
    duration_weight: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Step-wise PPO (paper A.5); defaults follow verl where the paper is silent.

    Attributes:
      num_updates: rollouts, each followed by its minibatch updates.
      states_per_update: states drawn from the pool.
      samples_per_state: replies sampled for each.
      num_epochs: passes over a rollout.
      minibatch_size: samples of one optimizer update.
      micro_batch_size: samples of one forward pass.
      seq_lens: padded lengths of prompt plus reply, ascending.
      reward: the step reward.
      gamma: discount between tokens.
      gae_lambda: lambda of generalized advantage estimation.
      clip_eps: clip range of the probability ratio.
      value_clip: clip range of the value around the old one.
      value_coef: weight of the value loss (a separate critic: only its scale).
      entropy_coef: weight of the entropy bonus.
      kl_coef: weight of the token-level KL penalty in the reward.
      whiten_advantages: zero mean and unit variance over a rollout's tokens.
      actor: optimizer of the policy.
      critic: optimizer of the critic.
      critic_warmup_updates: first rollouts that train only the critic.
      checkpoint_every: rollouts between checkpoints.
      keep_checkpoints: how many to keep.
      probe_every: rollouts between evaluations for the Figure-4 curve; 0 = never.
      probe_trajectories: trajectories a task in such an evaluation.
    """

    num_updates: int = 40
    states_per_update: int = 64
    samples_per_state: int = 1
    num_epochs: int = 1
    minibatch_size: int = 64
    micro_batch_size: int = 64
    seq_lens: tuple[int, ...] = (16_384,)
    reward: RewardConfig = RewardConfig()
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip_eps: float = 0.2
    value_clip: float = 0.5
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    kl_coef: float = 0.001
    whiten_advantages: bool = True
    actor: OptimizerConfig = OptimizerConfig(peak_lr=1e-6, end_lr_frac=1.0)
    critic: OptimizerConfig = OptimizerConfig(peak_lr=1e-5, end_lr_frac=1.0)
    critic_warmup_updates: int = 0
    checkpoint_every: int = 1
    keep_checkpoints: int = 2
    probe_every: int = 5
    probe_trajectories: int = 2

    def __post_init__(self) -> None:
        num_samples = self.states_per_update * self.samples_per_state
        _check(
            num_samples % self.minibatch_size == 0,
            "ppo.minibatch_size",
            self.minibatch_size,
            f"a divisor of {num_samples} samples an update",
        )
        _check(
            self.minibatch_size % self.micro_batch_size == 0,
            "ppo.micro_batch_size",
            self.micro_batch_size,
            "a divisor of minibatch_size",
        )
        _check(0 <= self.gamma <= 1, "ppo.gamma", self.gamma, "in [0, 1]")
        _check(
            0 <= self.gae_lambda <= 1, "ppo.gae_lambda", self.gae_lambda, "in [0, 1]"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation (paper A.8).

    Attributes:
      trajectories_per_task: k; average and best over them (paper: 8).
      max_steps: steps of one trajectory.
      policies: names to evaluate: "starter", "expert", "sft", "ppo", or "hf:<path>".
      final: which submission counts: the "last" valid one (paper) or the one with
        the best "selection" score.
      fresh_states: states per held-in task for comparing mean step rewards.
      samples_per_state: replies per such state and policy.
      num_in_flight: trajectories that run side by side.
    """

    trajectories_per_task: int = 8
    max_steps: int = 15
    policies: tuple[str, ...] = ("starter", "expert", "sft", "ppo")
    final: Literal["last", "selection"] = "last"
    fresh_states: int = 24
    samples_per_state: int = 4
    num_in_flight: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: every stage reads its own section.

    Attributes:
      name: of the run; default working directory is runs/<name>.
      seed: everything random is derived from it.
      task_root: folder that holds task folders.
      held_in: ids of the training tasks.
      held_out: ids of the tasks that are only evaluated.
      init: Hugging Face folder to start from; None starts from random weights.
      model: shape when `init` is None (else read from its config.json).
    """

    name: str
    seed: int = 0
    task_root: str = "tasks"
    held_in: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    init: str | None = None
    model: ModelConfig | None = None
    mesh: MeshConfig = MeshConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    prompt: PromptConfig = PromptConfig()
    env: EnvConfig = EnvConfig()
    sample: SampleConfig = SampleConfig()
    collect: CollectConfig = CollectConfig()
    pretrain: PretrainConfig | None = None
    sft: SftConfig = SftConfig()
    ppo: PpoConfig = PpoConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self) -> None:
        _check(
            (self.init is None) != (self.model is None),
            "init / model",
            (self.init, self.model),
            "exactly one of them to be given",
        )
        both = sorted(set(self.held_in) & set(self.held_out))
        _check(not both, "held_out", both, "no task that is also held in")


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the config that `path`'s `get_config()` builds, with overrides.

    Args:
      path: a Python file such as configs/quickstart.py.
      overrides: `section.field=value` strings; values are Python literals, and
        bare words are strings.

    Raises:
      ConfigError: no such file, no `get_config`, or a bad override.
    """
    file = Path(path)
    if not file.is_file():
        found = sorted(str(p) for p in Path("configs").glob("*.py"))
        near = difflib.get_close_matches(path, found, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else f"; found {found}"
        raise ConfigError(f"--config={path}: no such file{hint}")
    spec = importlib.util.spec_from_file_location(f"run_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={path}: the file defines no get_config()")
    config = module.get_config()
    if not isinstance(config, RunConfig):
        raise ConfigError(f"--config={path}: get_config() returned no RunConfig")
    for override in overrides:
        config = apply_override(config, override)
    return config


def apply_override(config: RunConfig, override: str) -> RunConfig:
    """Returns `config` with one `section.field=value` applied.

    Raises:
      ConfigError: no such field (the nearest one is named), or a value of a wrong
        type or range.
    """
    path, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override!r}: expected path=value")
    return _replace(config, path.strip().split("."), text.strip(), path.strip())


def _replace(config: Any, names: list[str], text: str, full_path: str) -> Any:
    name = names[0]
    fields = [f.name for f in dataclasses.fields(config)]
    if name not in fields:
        near = difflib.get_close_matches(name, fields, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"--set {full_path}={text}: {type(config).__name__} has no field "
            f"{name!r}; {hint}fields: {', '.join(fields)}"
        )
    old = getattr(config, name)
    if len(names) > 1:
        if not dataclasses.is_dataclass(old):
            raise ConfigError(
                f"--set {full_path}={text}: {name} = {old!r} has no fields"
            )
        new = _replace(old, names[1:], text, full_path)
    else:
        cls = cast(Any, type(config))
        hints: dict[str, Any] = typing.get_type_hints(cls)
        hint = hints[name]
        new = _parse_value(text, hint, full_path)
    return dataclasses.replace(config, **{name: new})


def _parse_value(text: str, annotation: Any, full_path: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    try:
        value: Any = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = words.get(text.lower(), text)
    if isinstance(value, list):
        value = tuple(cast(list[Any], value))
    if typing.get_origin(annotation) is Literal:
        options = [str(a) for a in typing.get_args(annotation)]
        near = difflib.get_close_matches(str(value), options, 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        expected = f"one of {options}{hint}"
    else:
        is_plain = isinstance(annotation, type) and not typing.get_args(annotation)
        expected = annotation.__name__ if is_plain else str(annotation)
    found, converted = _convert(value, text, annotation)
    if not found:
        raise ConfigError(f"--set {full_path}={text}: expected {expected}")
    return converted


def _convert(value: Any, text: str, annotation: Any) -> tuple[bool, Any]:
    """Returns (True, value as `annotation`) or (False, None)."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return value in args, value
    if origin is tuple:
        if not isinstance(value, tuple):
            return False, None
        values = cast(tuple[Any, ...], value)
        items = [_convert(v, str(v), args[0]) for v in values]
        return all(ok for ok, _ in items), tuple(v for _, v in items)
    if origin is not None or isinstance(annotation, types.UnionType):
        options = (_convert(value, text, a) for a in args)
        return next((o for o in options if o[0]), (False, None))
    if annotation is float and type(value) in (int, float):
        return True, float(value)
    if annotation is str:
        is_text = isinstance(value, str)
        return is_text, value
    return type(value) is annotation, value
