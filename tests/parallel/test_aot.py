from mlagent_jax.parallel.aot import needed_bytes


def test_what_does_not_fit_is_read_from_the_compilers_messages():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (22.53G) exceeds available HBM (15.75G)."
    )
    assert needed_bytes(message) == 22.53 * 2**30
    message = "Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."
    assert needed_bytes(message) == 20.5 * 2**30
    assert needed_bytes("something else") == 0.0
