"""Launching stages on Cloud TPU VMs and on GKE: `python -m launch.tpu ...`."""
