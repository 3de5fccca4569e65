"""Command-line programs, one a stage; the only place with absl flags."""
