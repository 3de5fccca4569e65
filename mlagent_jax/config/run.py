"""A whole run: one section for every stage."""

import dataclasses

from mlagent_jax.config.agent import (
    EnvConfig,
    PolicyConfig,
    PromptConfig,
    SampleConfig,
)
from mlagent_jax.config.checks import check
from mlagent_jax.config.costs import CostConfig
from mlagent_jax.config.evaluation import EvalConfig
from mlagent_jax.config.model import MeshConfig, ModelConfig, TokenizerConfig
from mlagent_jax.config.rl import PpoConfig
from mlagent_jax.config.training import CollectConfig, PretrainConfig, SftConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: every stage reads its own section.

    Attributes:
      name: of the run; default working directory is runs/<name>.
      seed: everything random is derived from it.
      task_root: folder that holds task folders.
      real_data: folder of imported real data (`python -m launch.tasks import`), which
        tasks that have real data then use; None uses their lookalikes.
      held_in: ids of the training tasks.
      held_out: ids of the tasks that are only evaluated.
      init: Hugging Face folder to start from; None starts from random weights.
      model: shape and how it is computed; may be None with `init`, whose config.json
        then says the shape. Given both, the shapes must agree.
      editor: who edits files in profile `mlab` ("scripted" follows instructions that
        name exact lines).
    """

    name: str
    seed: int = 0
    task_root: str = "tasks"
    real_data: str | None = None
    held_in: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    init: str | None = None
    model: ModelConfig | None = None
    mesh: MeshConfig = MeshConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    prompt: PromptConfig = PromptConfig()
    env: EnvConfig = EnvConfig()
    editor: PolicyConfig = PolicyConfig()
    sample: SampleConfig = SampleConfig()
    collect: CollectConfig = CollectConfig()
    pretrain: PretrainConfig | None = None
    sft: SftConfig = SftConfig()
    ppo: PpoConfig = PpoConfig()
    eval: EvalConfig = EvalConfig()
    costs: CostConfig = CostConfig()

    def __post_init__(self) -> None:
        check(
            self.init is not None or self.model is not None,
            "init / model",
            (self.init, self.model),
            "at least one of them to be given",
        )
        both = sorted(set(self.held_in) & set(self.held_out))
        check(not both, "held_out", both, "no task that is also held in")
