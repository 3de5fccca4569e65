"""Step-wise PPO (paper A.5): one action from a recorded state is one episode."""
