"""Text at the border of the model: prompts, actions, tokens."""
