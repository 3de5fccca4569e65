"""Environment: tasks, workspaces, sandboxed execution, grading, rewards; no jax."""
