"""Everything about task folders: `python -m launch.tasks --help`."""
