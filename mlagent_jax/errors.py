"""The project's error types: one for each answer to "whose fault is it?".

An agent's fault is an `ActionError` or a `SubmissionError`; it becomes feedback
and reward and never leaves `Environment.step`. Our own fault is an
`EnvUnavailableError`: the sample is dropped and counted, never rewarded. The
user's fault is a `ConfigError`, `TaskError`, `DataError` or `CheckpointError`,
raised before work starts where possible. Nobody's fault is a `RunInterruptedError`.
Any other exception is a bug and stops the run.
"""


class MlAgentError(Exception):
    """Base of every deliberate error; its text says what came and what to do."""


class ConfigError(MlAgentError, ValueError):
    """A run configuration, flag or override is wrong."""


class TaskError(MlAgentError):
    """A task folder or its prepared data breaks the contract of tasks/README.md."""


class DataError(MlAgentError):
    """A recorded file (trajectories, blobs, evaluation records) cannot be trusted."""


class CheckpointError(MlAgentError):
    """Weights are missing, unexpected, mis-shaped or damaged; all are listed."""


class DivergedError(MlAgentError):
    """A loss or a gradient is not finite; checkpoints from before it are kept."""


class RunInterruptedError(MlAgentError):
    """The run was asked to end or lost a machine; the same command continues it."""


class PolicyError(MlAgentError):
    """A policy could not produce a reply (endpoint down, budget used up)."""


class ActionError(MlAgentError):
    """The agent's reply asks for nothing that can be done; the text is its feedback.

    Attributes:
      reason: stable snake_case code, e.g. "no_action" or "search_not_found".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SubmissionError(MlAgentError):
    """The grader cannot score the agent's submission; the text is its feedback.

    Attributes:
      reason: stable snake_case code, e.g. "missing_file" or "duplicate_ids".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EnvUnavailableError(MlAgentError):
    """Our machinery failed (worker died, disk full); the sample is dropped."""
