"""Names in a checkpoint, and the rule of what is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import checkpoint_layout as layout
from scheduler.checkpoint_layout import LayerFileInfo, Manifest, ManifestError, parse_manifest
from scheduler.exit_codes import EXITS, ExitCode, describe, from_wire


@given(st.integers(0, 10**7))
def test_names_and_numbers_invert_each_other(n: int) -> None:
    assert layout.step_of_dir(layout.step_dir(n)) == n
    assert layout.layer_of_file(layout.weights_file(n)) == n
    assert layout.layer_of_file(layout.optimizer_file(n)) == n


@given(st.text(max_size=40))
def test_no_accepted_name_leaves_its_directory(name: str) -> None:
    try:
        layout.safe_file_name(name)
    except ManifestError:
        return
    assert "/" not in name
    assert name.startswith("layer-")


@given(
    st.dictionaries(st.integers(0, 99), st.none() | st.floats(0, 9), max_size=12),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_newest_stay_and_the_best_and_nothing_else(
    found: dict[int, float | None], keep: int, keep_best: bool
) -> None:
    removed, reasons = layout.to_remove(found.items(), keep, keep_best)
    stay = set(found) - set(removed)
    assert set(sorted(found)[-keep:]) <= stay
    assert len(stay) == len(reasons) <= keep + keep_best
    rated = [loss for loss in found.values() if loss is not None]
    if keep_best and rated:
        assert min(rated) in [found[s] for s in stay]


@given(st.integers(0, 9), st.none() | st.floats(0, 9), st.none() | st.floats(0, 9))
def test_a_manifest_comes_back_equal(step: int, loss: float | None, eval_loss: float | None) -> None:
    files = (LayerFileInfo(layout.weights_file(0), "ab", 5),)
    manifest = Manifest("r", step, files, step * 4, '{"name": "j"}', loss, eval_loss)
    assert parse_manifest(manifest.to_json(), "m") == manifest


def test_a_manifest_of_another_version_says_so() -> None:
    with pytest.raises(ManifestError, match="found manifest version 9, required 1"):
        parse_manifest('{"version": 9}', "m")


def test_missing_layers_are_those_without_weights() -> None:
    names = [layout.weights_file(0), layout.optimizer_file(1), layout.weights_file(2)]
    assert layout.missing_layers(names, 4) == (1, 3)


def test_every_exit_code_has_a_meaning_and_a_remedy() -> None:
    assert set(EXITS) == set(ExitCode)
    assert all(x.meaning and x.remedy for x in EXITS.values())
    assert describe(11).startswith("11 WORKER_LOST:")
    assert "not one of" in describe(77)


def test_a_code_from_elsewhere_is_never_success() -> None:
    assert from_wire(int(ExitCode.DATA)) is ExitCode.DATA
    assert from_wire(0) is ExitCode.WORKER_FAILED
    assert from_wire(999) is ExitCode.WORKER_FAILED
