"""The usage examples of torchjd's own documentation run here, by changing one import."""

import doctest

import pytest
import torchjd.scalarization

import mtl_scalarize

BOTH = set(torchjd.scalarization.__all__) & set(mtl_scalarize.__all__)
WITH_EXAMPLE = [name for name in BOTH if ">>>" in getattr(torchjd.scalarization, name).__doc__]


@pytest.mark.parametrize("name", sorted(WITH_EXAMPLE))
def test_the_example_of_torchjd_runs_with_the_import_changed(name: str) -> None:
    theirs = getattr(torchjd.scalarization, name).__doc__
    source = theirs.replace("from torchjd.scalarization import", "from mtl_scalarize import")
    example = doctest.DocTestParser().get_doctest(source, {}, name, None, None)
    outcome = doctest.DocTestRunner().run(example, clear_globs=False)
    assert outcome.attempted > 5
    assert outcome.failed == 0
    assert example.globs[name] is getattr(mtl_scalarize, name)
