"""Every stream of random numbers is named, and no two are related."""

from hypothesis import given
from hypothesis import strategies as st

from dhel_kcl.seeding import derive_seed

seeds = st.integers(0, 2**32)
epochs = st.integers(0, 1000)


def test_values_are_stable_across_versions_and_machines() -> None:
    assert derive_seed(0, "initialisation") == 1524489256608302450
    assert derive_seed(1, "order", 2) == 5971170691884857887


@given(seeds, epochs)
def test_the_next_epoch_of_a_seed_is_not_this_epoch_of_the_next_seed(seed: int, epoch: int) -> None:
    assert derive_seed(seed, "order", epoch + 1) != derive_seed(seed + 1, "order", epoch)


@given(seeds, epochs)
def test_streams_differ_by_purpose_and_fit_in_63_bits(seed: int, epoch: int) -> None:
    values = [derive_seed(seed, purpose, epoch) for purpose in ("order", "augmentation", "initialisation")]
    assert len(set(values)) == 3
    assert all(0 <= value < 2**63 for value in values)


def test_counters_are_not_confused_by_concatenation() -> None:
    assert derive_seed(1, "order", 12, 3) != derive_seed(1, "order", 1, 23)
