"""The JobSet manifest that runs a stage on a TPU slice of GKE, and its commands.

A JobSet starts one pod on every host of the slice and starts all of them again when
one ends early, which is how a spot slice resumes. The run directory is the bucket,
mounted by the Cloud Storage FUSE driver of GKE.
"""

from typing import Any

from launch.tpu.settings import HOST_STAGES, PodSettings
from mlagent_jax.errors import ConfigError

_MOUNT = "/mlagent"
_CONTAINER = "stage"
_COORDINATOR_PORT = 8476
_GRACE_S = 120  # from SIGTERM to SIGKILL; spot slices may give less
# The same command would fail again: a refused setting, or a bug.
_FINAL_STATUSES = (1, 2)


def manifest(pod: PodSettings) -> dict[str, Any]:
    """Returns the JobSet as JSON, which kubectl reads like YAML.

    Raises:
      ConfigError: no image is given.
    """
    if not pod.image:
        raise ConfigError("--image: expected a container image for GKE")
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": pod.name,
            # One slice is one node pool; no pod of another job may land in it.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": (
                    "cloud.google.com/gke-nodepool"
                )
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": pod.max_restarts,
                "rules": [
                    {
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [
                {"name": "slice", "replicas": 1, "template": {"spec": _job(pod)}}
            ],
        },
    }


def apply(path: str) -> list[str]:
    """Returns the command that starts what the manifest at `path` says."""
    return ["kubectl", "apply", f"--filename={path}"]


def state(pod: PodSettings) -> list[str]:
    """Returns the command that shows the JobSet and its pods."""
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={pod.name}"
    return ["kubectl", "get", "jobsets,pods", selector, "--output=wide"]


def logs(pod: PodSettings) -> list[str]:
    """Returns the command that prints the end of every host's log."""
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={pod.name}"
    return ["kubectl", "logs", selector, "--prefix", "--tail=50"]


def delete(pod: PodSettings) -> list[str]:
    """Returns the command that ends the JobSet."""
    return ["kubectl", "delete", "jobset", pod.name, "--ignore-not-found"]


def _job(pod: PodSettings) -> dict[str, Any]:
    num_hosts = pod.num_hosts()
    return {
        "parallelism": num_hosts,
        "completions": num_hosts,
        "completionMode": "Indexed",
        # The JobSet starts all hosts again, not the Job a single one.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": list(_FINAL_STATUSES),
                    },
                }
            ]
        },
        "template": {
            "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
            "spec": _pod_spec(pod),
        },
    }


def _pod_spec(pod: PodSettings) -> dict[str, Any]:
    mount_options = ["implicit-dirs"]
    if pod.bucket_folder():
        mount_options.append(f"only-dir:{pod.bucket_folder()}")
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "nodeSelector": _node_selector(pod),
        "containers": [_container(pod)],
        "volumes": [
            {
                "name": "run",
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {
                        "bucketName": pod.bucket_name(),
                        "mountOptions": ",".join(mount_options),
                    },
                },
            }
        ],
    }


def _node_selector(pod: PodSettings) -> dict[str, str]:
    selector: dict[str, str] = {}
    if pod.stage not in HOST_STAGES:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": pod.generation().gke_accelerator,
            "cloud.google.com/gke-tpu-topology": pod.tpu.partition(":")[2],
        }
    if pod.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return selector


def _container(pod: PodSettings) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": pod.image,
        "command": pod.stage_command(f"{_MOUNT}/runs/{pod.name}"),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "volumeMounts": [{"name": "run", "mountPath": _MOUNT}],
    }
    if pod.stage not in HOST_STAGES:
        chips = min(pod.num_chips(), pod.generation().chips_per_host)
        container["ports"] = [{"containerPort": _COORDINATOR_PORT}]
        container["resources"] = {"limits": {"google.com/tpu": chips}}
    return container
