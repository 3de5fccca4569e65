"""The one check that every section makes of its fields."""

from mlagent_jax.errors import ConfigError


def check(is_ok: bool, field: str, value: object, expected: str) -> None:
    """Refuses a field's value.

    Args:
      is_ok: nothing happens if True.
      field: path of the field, e.g. "ppo.gamma".
      value: what it holds.
      expected: completes "expected ...".

    Raises:
      ConfigError: unless `is_ok`.
    """
    if not is_ok:
        raise ConfigError(f"{field} = {value!r}: expected {expected}")
