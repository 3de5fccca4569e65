"""What the environment costs, beside a cold interpreter and a copied workspace.

Run by `make bench`; prints what `launch.bench.environment` measures, and asserts
nothing about time.
"""

import json

from launch.bench import environment

ROUNDS = 11


def test_environment_against_a_cold_interpreter_and_copies():
    print()
    print(json.dumps(environment.run(ROUNDS), indent=1))
